// How the threads of elementwise kernels share their elements: 16 bytes at a time where every address allows it, one element where not.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "backend/cuda/device.h"

namespace tessera::CUDA_SIDE {

constexpr int per_block = 256;  // threads

// N elements as floats, in pieces of 16 bytes at most. REQUIRES: the address is a multiple of a piece.
template <int N, class T>
__device__ __forceinline__ void load(float (&to)[N], const T* from) {
  constexpr int piece = N < pack_of<T> ? N : pack_of<T>;
#pragma unroll
  for (int i = 0; i < N; i += piece) {
    const Pack<T, piece> p = *reinterpret_cast<const Pack<T, piece>*>(from + i);
#pragma unroll
    for (int k = 0; k < piece; ++k) to[i + k] = value_of(p.at[k]);
  }
}
template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  constexpr int piece = N < pack_of<T> ? N : pack_of<T>;
#pragma unroll
  for (int i = 0; i < N; i += piece) {
    Pack<T, piece> p;
#pragma unroll
    for (int k = 0; k < piece; ++k) p.at[k] = rounded<T>(from[i + k]);
    *reinterpret_cast<Pack<T, piece>*>(to + i) = p;
  }
}

// Calls f.operator()<count>(i) once for all elements i, ... i + count - 1 of [0, n): in packs of N, the rest one by one. Threads of all
// blocks of a grid in x.
template <int N, class F>
__device__ __forceinline__ void for_packs(int64_t n, F&& f) {
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x, packs = n / N;
  for (int64_t p = thread; p < packs; p += step) f.template operator()<N>(p * N);
  if constexpr (N > 1) {
    if (packs * N + thread < n) f.template operator()<1>(packs * N + thread);
  }
}

// For for_packs: as many threads as the device runs at once, no more than there are packs.
inline Grid flat_grid(Device& device, int64_t n, int pack) {
  const int64_t wanted = (n / pack + per_block - 1) / per_block, most = int64_t(multiprocessors(device)) * 8;
  return {dim3(unsigned(n ? std::clamp<int64_t>(wanted, 1, most) : 0)), dim3(per_block)};
}

// Rows of few items share a block: thread y of a block has row blockIdx.x * blockDim.y + y, thread x its items x, x + blockDim.x, ...
inline Grid rows_grid(int64_t rows, int64_t items) {
  unsigned x = 1;
  while (x < per_block && x < items) x *= 2;
  const unsigned y = per_block / x;
  return {dim3(unsigned((rows + y - 1) / y)), dim3(x, y)};
}
__device__ __forceinline__ int64_t row_of_thread() { return int64_t(blockIdx.x) * blockDim.y + threadIdx.y; }

// Whether packs can be used on all of these; null is no obstacle.
inline bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(), [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}
// Calls f.operator()<N>() with N = `most` or 1.
template <int most, class F>
void with_packs(bool possible, F&& f) {
  if (possible) return f.template operator()<most>();
  f.template operator()<1>();
}

}  // namespace tessera::CUDA_SIDE
