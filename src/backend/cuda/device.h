// The language of kernels: what is the same for the GPU (nvcc) and for the host, where a block's threads are fibers (cuda_host/kernel.h).
// Kernels take plain pointers and sizes. Rules that make both work:
// - shared memory is dynamic: a kernel makes `SharedMemory shared;` and takes arrays from it in one order; the launch says how many bytes.
//   On the host it is filled with NaN before each block.
// - barriers and shuffles are reached by all threads of the block or warp; no thread returns before the last of them.
// - products and sums are not contracted (--fmad=false): write fmaf where it is meant, so that both sides compute the same.
// - no atomics on floats: sums have one order.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime.h"
#include "core/dtype.h"

#ifdef __CUDACC__
#include "backend/cuda/device_cuda.h"
#else
#include "backend/cuda_host/kernel.h"
#endif

namespace tessera::CUDA_SIDE {

constexpr int warp_size = 32;
constexpr unsigned whole_warp = 0xffffffffu;

// The launch of a kernel into Lane::compute: launch(device, kernel<T>, {blocks, threads, shared bytes}, arguments...), arguments converted
// to the kernel's parameters. Nothing happens when there are no blocks.
// struct Grid { dim3 blocks, threads; size_t shared = 0; };   (device_cuda.h, cuda_host/kernel.h)

// N consecutive elements, moved by one instruction. REQUIRES: the address is a multiple of its size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};
template <class T>
constexpr int pack_of = 16 / int(sizeof(T));  // elements in 16 bytes

__device__ __forceinline__ float from_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t to_bits(float x) { return __float_as_uint(x); }

__device__ __forceinline__ float value_of(float x) { return x; }
__device__ __forceinline__ float value_of(Bf16 x) { return from_bits(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float value_of(F16 x) { return half_value(x.bits); }

// Nearest even.
template <class T>
__device__ __forceinline__ T rounded(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    T out;
    if constexpr (std::is_same_v<T, Bf16>) {
      out.bits = bf16_bits(x);
    } else {
      out.bits = half_bits(x);
    }
    return out;
  }
}
// Two values in one register, `low` at the lower address: the operands of tensor cores.
template <class T>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  if constexpr (std::is_same_v<T, Bf16>) return bf16_pair_bits(low, high);
  return half_pair_bits(low, high);
}

// Sum and maximum over a warp, in every lane, in one order.
__device__ __forceinline__ float warp_sum(float x) {
  for (int m = warp_size / 2; m; m /= 2) x += __shfl_xor_sync(whole_warp, x, m);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int m = warp_size / 2; m; m /= 2) x = fmaxf(x, __shfl_xor_sync(whole_warp, x, m));
  return x;
}
// Over a block of whole warps, in every thread. `warps`: shared memory for one float of each warp; free again when it returns.
template <class Reduce>
__device__ __forceinline__ float block_reduce(float x, float* warps, Reduce reduce, float (*of_warp)(float)) {
  x = of_warp(x);
  const int warp = int(threadIdx.x) / warp_size, count = int(blockDim.x) / warp_size;
  if (int(threadIdx.x) % warp_size == 0) warps[warp] = x;
  __syncthreads();
  x = warps[0];
  for (int w = 1; w < count; ++w) x = reduce(x, warps[w]);
  __syncthreads();
  return x;
}
__device__ __forceinline__ float block_sum(float x, float* warps) {
  return block_reduce(
      x, warps, [](float a, float b) { return a + b; }, warp_sum);
}
__device__ __forceinline__ float block_max(float x, float* warps) {
  return block_reduce(
      x, warps, [](float a, float b) { return fmaxf(a, b); }, warp_max);
}

// d (16, 8) f32 += a (16, 16) b (16, 8), T = Bf16 or F16. Fragments as PTX mma.m16n8k16 lays them out (PTX ISA, "Matrix Fragments for
// mma.m16n8k16"): lane l has g = l / 4, t = l % 4; a = {(g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8)}, b = {(2t, g), (2t+8, g)},
// d = {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}; a register holds two neighbours of a row of a, of a column of b.
//   template <class T> void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
// Four 8 x 8 tiles of 16-bit numbers from shared memory; lane l gives the address of row l % 8 of tile l / 8 (16 bytes, aligned).
//   void load_tiles(uint32_t (&r)[4], const void* row);             ldmatrix.x4: r[i] = elements (l / 4, 2 (l % 4)) and the next, of tile i
//   void load_tiles_transposed(uint32_t (&r)[4], const void* row);  ldmatrix.x4.trans: of the transposed tiles
// 16 bytes into shared memory beside the computation, zeros unless `valid`; they have arrived after copies_wait<n>() and a barrier, where n
// is how many of the newest committed groups may still be on their way.
//   void copy_to_shared(void* to, const void* from, bool valid = true);  void copies_commit();  template <int n> void copies_wait();

}  // namespace tessera::CUDA_SIDE
