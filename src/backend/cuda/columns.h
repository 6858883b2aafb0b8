// Sums over rows, for each column: rows are cut into groups by their number alone, each is summed in one order, then the groups in order.
#pragma once
#include "backend/cuda/packs.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {

constexpr int strip_threads = 32, row_lanes = 8;  // a block: columns in packs, rows

// out (groups, cols) f32 = or += the sums of terms of a group. Terms: `void operator()(float (&terms)[N], int64_t row, int col) const`.
template <int N, bool adds, class Terms>
__global__ void __launch_bounds__(per_block) sum_rows_kernel(float* out, Terms terms, int64_t rows, int cols) {
  SharedMemory shared;
  float* const of_lanes = shared.take<float>(row_lanes * strip_threads * N);
  const int x = int(threadIdx.x), y = int(threadIdx.y), col = (int(blockIdx.x) * strip_threads + x) * N;
  const int64_t group = blockIdx.y, begin = group * column_group_rows;
  const int64_t end = begin + column_group_rows < rows ? begin + column_group_rows : rows;
  float sum[N] = {};
  if (col < cols) {
#pragma unroll 4
    for (int64_t row = begin + y; row < end; row += row_lanes) {
      float term[N];
      terms(term, row, col);
      for (int k = 0; k < N; ++k) sum[k] += term[k];
    }
  }
  for (int k = 0; k < N; ++k) of_lanes[(k * row_lanes + y) * strip_threads + x] = sum[k];
  __syncthreads();
  if (y > 0 || col >= cols) return;
  float* const to = out + group * cols + col;
  for (int k = 0; k < N; ++k) {
    for (int lane = 1; lane < row_lanes; ++lane) sum[k] += of_lanes[(k * row_lanes + lane) * strip_threads + x];
    to[k] = adds ? to[k] + sum[k] : sum[k];
  }
}

static __global__ void __launch_bounds__(per_block) add_groups_kernel(float* sum, const float* of_groups, int64_t groups, int cols) {
  const int col = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (col >= cols) return;
  float total = sum[col];
#pragma unroll 8
  for (int64_t g = 0; g < groups; ++g) total += of_groups[g * cols + col];
  sum[col] = total;
}

// sum (cols) f32 += . scratch: column_scratch(rows, cols) bytes.
template <int N, class Terms>
void add_columns(Device& device, float* sum, Terms terms, int64_t rows, int64_t cols, std::byte* scratch) {
  const int64_t groups = column_groups(rows), strip = int64_t(strip_threads) * N;
  const Grid grid{dim3(unsigned((cols + strip - 1) / strip), unsigned(groups)), dim3(strip_threads, row_lanes),
                  size_t(row_lanes * strip) * sizeof(float)};
  if (groups == 1) return launch(device, sum_rows_kernel<N, true, Terms>, grid, sum, terms, rows, int(cols));
  auto* const of_groups = reinterpret_cast<float*>(scratch);
  launch(device, sum_rows_kernel<N, false, Terms>, grid, of_groups, terms, rows, int(cols));
  launch(device, add_groups_kernel, {dim3(unsigned((cols + per_block - 1) / per_block)), dim3(per_block)}, sum, of_groups, groups,
         int(cols));
}

}  // namespace tessera::CUDA_SIDE
