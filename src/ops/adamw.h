// AdamW (Loshchilov and Hutter, 2019) in torch's order of operations, on flat f32 arrays; sums of squares for clipping.
#pragma once
#include <span>

#include "core/kernel_options.h"
#include "core/tensor.h"

namespace tessera {

// copy (bf16) becomes the new values rounded, unless it is empty.
void adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep&);
void square_sums(Tensor sums, Tensor x);  // sums (ceil(n/64)) f64 of blocks of 64

// Of all numbers of x, f64 and >= 0, where they are; the host waits and reads parts (p, 2) i64: working memory beside them, more rows of
// which keep a larger device busy.
double largest(std::span<const Tensor> x, Tensor parts);                             // 0 of none, infinity when one is not finite
unsigned __int128 sum_units(std::span<const Tensor> x, int exponent, Tensor parts);  // of whole units of 2^exponent in each

}  // namespace tessera
