// How much memory beside the arena a GPU's operations work in: the device itself takes so much, and the plan counts it. Of the sizes
// alone, without CUDA. The device has one such piece, as large as the largest need of an operation.
#pragma once
#include <cstddef>
#include <cstdint>

#include <span>

#include "core/adapter_product.h"
#include "core/product.h"

namespace tessera {

constexpr size_t matmul_workspace = size_t(32) << 20;  // of a matrix product; a library may use less
constexpr int64_t most_fused_rows = 8;                 // of c, in products that decode 4-bit codes on the way to the arithmetic units

// Whether one kernel does the whole product, with codes that are never written out: one matrix of codes times few rows, and perhaps a
// narrow matrix of numbers beside it (an adapter).
bool is_fused_product(const Product&);

// [matmul_workspace][the largest decoded matrix], or nothing.
size_t product_scratch(const Product&);

// Whether kernels of our own form these: 16-bit numbers, one rank, a multiple of 8 up to 64, wide matrices of packs of 8.
bool joins_adapters(std::span<const AdapterProduct>);
// They cut x (m, k) into pieces by its sizes alone, so that a GPU of any size has enough of them: adapters() along k, adapters_backward()
// along m. Each leaves partial sums: f32 (pieces, adapters, m or r, r or k).
constexpr int64_t adapter_rows = 64, adapter_cols = 128;  // of x, of one block of threads
int64_t adapter_pieces(int64_t m, int64_t k);
int64_t adapter_backward_pieces(int64_t m, int64_t k);
size_t adapter_scratch(std::span<const AdapterProduct>);
size_t adapter_backward_scratch(std::span<const AdapterProduct>);

// Sums over rows (column_sum, the weight gradient of rmsnorm): one partial sum of each column and group of rows.
constexpr int64_t column_group_rows = 128;
constexpr int64_t column_groups(int64_t rows) { return (rows + column_group_rows - 1) / column_group_rows; }
constexpr size_t column_scratch(int64_t rows, int64_t cols) {
  return column_groups(rows) > 1 ? size_t(column_groups(rows) * cols) * sizeof(float) : 0;
}

// embedding_backward: the tokens sorted by their ids, twice, and the counts of 256 digits in each chunk of tokens.
constexpr int64_t sort_chunk = 1024, sort_digits = 256;
constexpr size_t embedding_scratch(int64_t tokens) {
  const int64_t chunks = (tokens + sort_chunk - 1) / sort_chunk;
  return size_t(2 * tokens + chunks * sort_digits) * sizeof(int32_t);
}

// attention_backward: a number for each query of each head.
constexpr size_t attention_scratch(int64_t batch, int64_t queries, int64_t heads) {
  return size_t(batch * queries * heads) * sizeof(float);
}

}  // namespace tessera
