// Dropout inside a product: the mask of core/rng.h over fragments of 16-bit numbers, pairs in registers.
#pragma once
#include "backend/cuda/device.h"
#include "core/adapter_product.h"
#include "core/rng.h"

namespace tessera::CUDA_SIDE {

// Of a matrix (m, k), k a multiple of 4; rows_of_key rows of it after one another belong to a key.
struct DropMask {
  const int64_t* row_keys = nullptr;  // null: nothing is dropped
  uint64_t key = 0;
  uint32_t threshold = 0;
  int rows_of_key = 1;
  int64_t k = 0;
};
DropMask drop_mask(const Drop&, int64_t m, int64_t k);
float drop_factor(const Drop&);  // of what is kept: 1 / (1 - p)

struct MaskRow {
  uint32_t low, high;  // of the row's key
  uint64_t counter;    // of its first four columns
};
__device__ __forceinline__ MaskRow mask_row(const DropMask& d, int row) {
  const int batch = row / d.rows_of_key;
  const auto of_row = uint64_t(d.row_keys[batch]);
  return {uint32_t(of_row), uint32_t(of_row >> 32), uint64_t(row - batch * d.rows_of_key) * uint64_t(d.k) / 4};
}

// Of columns col to col + 3: all bits of the 16 of a number that is kept. REQUIRES: col % 4 == 0.
struct Mask4 {
  uint32_t pair[2];
};
__device__ __forceinline__ Mask4 mask_of(const DropMask& d, const MaskRow& row, int col) {
  const uint64_t counter = row.counter + uint64_t(col / 4);
  const Philox4 words = philox({uint32_t(counter), uint32_t(counter >> 32), row.low, row.high}, d.key);
  Mask4 mask;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    mask.pair[i] = (words[size_t(2 * i)] < d.threshold ? 0u : 0xffffu) | (words[size_t(2 * i + 1)] < d.threshold ? 0u : 0xffff0000u);
  return mask;
}

}  // namespace tessera::CUDA_SIDE
