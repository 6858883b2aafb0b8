// Matrix products. c = alpha * op(a) op(b), or += ; sums in f32. Throws Error (for programmers: shapes) when sizes disagree.
#pragma once
#include "core/product.h"

namespace tessera {

enum class Trans : bool { no = false, yes = true };

// c (m, n), op(a) (m, k), op(b) (k, n), all seen as (rows, cols); a and b of one dtype T, c of T or f32.
void gemm(Tensor c, Tensor a, Trans ta, Tensor b, Trans tb, float alpha = 1, bool accumulate = false);

// A sum of products, as core/product.h says.
void gemm(const Product&);

}  // namespace tessera
