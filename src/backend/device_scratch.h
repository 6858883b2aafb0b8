// How much memory beside the arena a GPU's operations work in: the device itself takes so much, and the plan counts it. Of the sizes
// alone, without CUDA. The device has one such piece, as large as the largest need of an operation.
#pragma once
#include <cstddef>

#include "core/product.h"

namespace tessera {

constexpr size_t matmul_workspace = size_t(32) << 20;  // of a matrix product; a library may use less
constexpr int64_t most_fused_rows = 8;                 // of c, in products that decode 4-bit codes on the way to the arithmetic units

// Whether one kernel does the whole product, with codes that are never written out: one matrix of codes times few rows, and perhaps a
// narrow matrix of numbers beside it (an adapter).
bool is_fused_product(const Product&);

// [matmul_workspace][the largest decoded matrix], or nothing.
size_t product_scratch(const Product&);

}  // namespace tessera
