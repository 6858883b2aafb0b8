// Rotary position embedding (Su et al., 2021) in the half-split order of Hugging Face: pairs are (i, i + R/2).
#pragma once
#include "core/tensor.h"

namespace tessera {

// In place on x (B, T, H, D). cos, sin (P, R/2) f32; positions (B, T) i32.
void rope(Tensor x, Tensor cos, Tensor sin, Tensor positions);
void rope_backward(Tensor dx, Tensor cos, Tensor sin, Tensor positions);  // in place, rotation by the negative angle

}  // namespace tessera
