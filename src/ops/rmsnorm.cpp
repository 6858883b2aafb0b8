#include "ops/rmsnorm.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

void rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
  require(computes_in(x.dtype) && same_kind(out, x) && is_vector(w, x.dtype, x.cols()) && is_vector(rstd, Dtype::f32, x.rows()), "rmsnorm",
          "out, x (..., C) and w (C) f32 or bf16, rstd (rows) f32; given out, rstd, x, w", {out, rstd, x, w});
  if (x.size()) x.home->rmsnorm(out, rstd, x, w, eps);
}

void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool dx_accumulates) {
  require(computes_in(x.dtype) && same_kind(dx, x) && same_kind(dy, x) && is_vector(w, x.dtype, x.cols()) &&
              is_vector(rstd, Dtype::f32, x.rows()) && (dw.empty() || is_vector(dw, Dtype::f32, x.cols())),
          "rmsnorm_backward", "dx, dy, x (..., C) and w (C) f32 or bf16, dw (C) and rstd (rows) f32; given dx, dw, dy, x, w, rstd",
          {dx, dw, dy, x, w, rstd});
  if (x.size()) x.home->rmsnorm_backward(dx, dw, dy, x, w, rstd, dx_accumulates);
}

}  // namespace tessera
