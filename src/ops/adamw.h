// AdamW (Loshchilov and Hutter, 2019) in torch's order of operations, on flat f32 arrays; sums of squares for clipping.
#pragma once
#include "core/kernel_options.h"
#include "core/tensor.h"

namespace tessera {

// copy (bf16) becomes the new values rounded, unless it is empty.
void adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep&);
void square_sums(Tensor sums, Tensor x);  // sums (ceil(n/64)) f64 of blocks of 64

}  // namespace tessera
