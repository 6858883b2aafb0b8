// What the attention kernels for tensor cores are made of: tiles of keys or queries in shared memory, their products, what a query sees.
// A tile is (rows, D) numbers of 16 bits, D a multiple of 32. A row is a number of chunks of 16 bytes; place() moves the chunks of a row so
// that the eight rows which ldmatrix takes together lie in different banks. Rows that do not exist and numbers from `width` to D are zero.
#pragma once
#include <climits>

#include "backend/cuda/attention_parts.h"
#include "backend/cuda/device.h"

namespace tessera::CUDA_SIDE {

constexpr float log2_e = 1.44269504088896340736f;
constexpr float no_score = -1e30f;  // the largest score of no keys: finite, so that differences are never NaN

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most(int a, int b) { return a > b ? a : b; }

__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// The compiler does not see that it is the same each time: so what depends on it is computed where it is used, and does not fill registers
// from before a loop on.
__device__ __forceinline__ int thread_anew() {
  int thread = int(threadIdx.x);
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(thread));
#endif
  return thread;
}
__device__ __forceinline__ int lane_anew() { return thread_anew() % warp_size; }

__device__ __forceinline__ int warp_min(int x) {
  for (int m = warp_size / 2; m; m /= 2) x = least(x, __shfl_xor_sync(whole_warp, x, m));
  return x;
}
__device__ __forceinline__ int warp_max(int x) { return -warp_min(-x); }

// --- what is seen -----------------------------------------------------------------------------------------------------------------

// Query i of a row of the batch sees keys first_key to last_key.
__device__ __forceinline__ int last_key(const AttentionSizes& z, int i) { return z.keys - z.queries + i; }
__device__ __forceinline__ int first_key(const AttentionSizes& z, const int* starts, int i) {
  return most(starts[i], last_key(z, i) - z.window + 1);
}
// The last query that sees a key of [begin, end), of every step-th from begin + offset on; -1: none. REQUIRES: queries = keys.
__device__ __forceinline__ int last_query_below(const AttentionSizes& z, const int* starts, int begin, int end, int offset, int step) {
  int last = -1;
  for (int i = begin + offset; i < least(z.queries, end + z.window); i += step)
    if (first_key(z, starts, i) < end) last = i;
  return last;
}

// The extremes over several queries; of none at first.
struct Seen {
  int least_first = INT_MAX, most_first = 0, least_last = INT_MAX, most_last = -1;

  __device__ __forceinline__ void add(int first, int last) {
    least_first = least(least_first, first);
    most_first = most(most_first, first);
    least_last = least(least_last, last);
    most_last = most(most_last, last);
  }
  __device__ __forceinline__ void join_warp() {
    least_first = warp_min(least_first);
    most_first = warp_max(most_first);
    least_last = warp_min(least_last);
    most_last = warp_max(most_last);
  }
  __device__ __forceinline__ bool any(int begin, int end) const { return least_first < end && most_last >= begin; }
  __device__ __forceinline__ bool all(int begin, int end) const { return most_first <= begin && least_last >= end - 1; }
};

// --- tiles ------------------------------------------------------------------------------------------------------------------------

template <int D>
__device__ __forceinline__ int place(int row, int chunk) {
  static_assert(D % 32 == 0);
  const int turn = D % 64 == 0 ? row & 7 : row >> 1 & 3;
  return (row * (D / 8) + (chunk ^ turn)) * 8;
}

// Rows [0, count) that begin `stride` apart, by all threads of the block; they arrive as copy_to_shared says.
template <int D, int rows, int threads, class T>
__device__ __forceinline__ void copy_tile(T* tile, const T* from, size_t stride, int count, int width) {
  constexpr int chunks = D / 8, step = threads / chunks;
  const int thread = thread_anew();
  const int chunk = thread % chunks;
  const T* at = from + size_t(thread / chunks) * stride + chunk * 8;
  if (threads % chunks && thread >= step * chunks) return;
#pragma unroll 4
  for (int row = thread / chunks; row < rows; row += step, at += size_t(step) * stride) {
    const bool valid = row < count && chunk * 8 < width;
    copy_to_shared(tile + place<D>(row, chunk), valid ? at : from, valid);
  }
}
// The same for rows that lie anywhere: row_at(r), null when there is none.
template <int D, int rows, int threads, class T, class RowAt>
__device__ __forceinline__ void copy_rows(T* tile, const T* anywhere, int width, RowAt row_at) {
  constexpr int chunks = D / 8;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < rows * chunks; i += threads) {
    const int row = i / chunks, chunk = i % chunks;
    const T* const from = row_at(row);
    const bool valid = from && chunk * 8 < width;
    copy_to_shared(tile + place<D>(row, chunk), valid ? from + chunk * 8 : anywhere, valid);
  }
}

// s[m][n] += a b^T, of the rows of tile a from a_row on and the first 8 N rows of tile b. Accumulators as mma lays them out.
template <int D, int M, int N, class T>
__device__ __forceinline__ void add_row_products(float (&s)[M][N][4], const T* a, int a_row, const T* b) {
  const int lane = lane_anew();
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) load_tiles(fa[m], a + place<D>(a_row + m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t fb[4];
      load_tiles(fb, b + place<D>(n * 8 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
      const uint32_t low[2] = {fb[0], fb[1]}, high[2] = {fb[2], fb[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma<T>(s[m][n], fa[m], low);
        mma<T>(s[m][n + 1], fa[m], high);
      }
    }
  }
}

// sum[m] (16, D) += p[m] (16, 8 N) b (8 N, D), p rounded to T. Accumulators of one product are the first operand of the next.
template <int D, int M, int N, class T>
__device__ __forceinline__ void add_weighted_rows(float (&sum)[M][D / 8][4], const float (&p)[M][N][4], const T* b) {
  const int lane = lane_anew();
#pragma unroll
  for (int k = 0; k < N / 2; ++k) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) fa[m][i] = rounded_pair<T>(p[m][k * 2 + i / 2][i % 2 * 2], p[m][k * 2 + i / 2][i % 2 * 2 + 1]);
    }
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      uint32_t fb[4];
      load_tiles_transposed(fb, b + place<D>(k * 16 + lane % 16, d * 2 + lane / 16));
      const uint32_t low[2] = {fb[0], fb[1]}, high[2] = {fb[2], fb[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma<T>(sum[m][d * 2], fa[m], low);
        mma<T>(sum[m][d * 2 + 1], fa[m], high);
      }
    }
  }
}

template <int M, int N>
__device__ __forceinline__ void set_zero(float (&x)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[m][n][i] = 0;
}

// f(m, n, i, row, column) for each accumulator of this lane: row within the 16 M rows, column within 8 N.
template <int M, int N, class F>
__device__ __forceinline__ void each_sum(F f) {
  const int lane = int(threadIdx.x) % warp_size;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(m, n, i, m * 16 + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
}

// The rows of one warp, through its own rows of a tile that is no longer needed, to where row_at says (null: nowhere).
template <int D, int M, class T, class RowAt>
__device__ __forceinline__ void store_rows(const float (&x)[M][D / 8][4], T* tile, int first_row, int width, RowAt row_at) {
  constexpr int chunks = D / 8;
  const int lane = int(threadIdx.x) % warp_size;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < chunks; ++n)
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        T* const to = tile + place<D>(first_row + m * 16 + lane / 4 + i / 2 * 8, n) + lane % 4 * 2;
        *reinterpret_cast<Pack<T, 2>*>(to) = {rounded<T>(x[m][n][i]), rounded<T>(x[m][n][i + 1])};
      }
  __syncwarp();
  for (int i = lane; i < M * 16 * chunks; i += warp_size) {
    const int row = i / chunks, chunk = i % chunks;
    T* const to = row_at(row);
    if (to && chunk * 8 < width)
      *reinterpret_cast<Pack<T, 8>*>(to + chunk * 8) = *reinterpret_cast<const Pack<T, 8>*>(tile + place<D>(first_row + row, chunk));
  }
}

}  // namespace tessera::CUDA_SIDE
