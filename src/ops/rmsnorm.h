// RMSNorm (Zhang and Sennrich, 2019): out = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps), row by row.
#pragma once
#include "core/tensor.h"

namespace tessera {

// out, x (..., C); rstd (rows) f32 is kept for the backward pass; w (C).
void rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps);
// dx = (or += when dx_accumulates) gradient of x; dw (C, f32) += unless empty.
void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool dx_accumulates = false);

}  // namespace tessera
