// What kernels know of 4-bit codes: the rules of backend/cpu/codes4-inl.h. For .cu files.
#pragma once
#include <cstring>

#include "backend/cuda/device.h"
#include "core/product.h"

namespace tessera::CUDA_SIDE {

constexpr int nested_in_block = 256;  // scales that share a scale

struct Map8 {
  float at[256];
};
// What codes stand for; one parameter of kernels, too large to be copied to a thread's stack.
struct Values4 {
  float table[16];
  Map8 map;
};

// Scales of blocks: absmax, or else codes with their map, as Codes4 says.
struct Scales4 {
  const float* absmax;
  const uint8_t* codes;
  const float *nested_absmax, *nested_offset;
  int block, shift;  // elements; log2 of them, or -1
};

inline Map8 map8(const float* values) {
  Map8 m;
  std::memcpy(m.at, values, sizeof m.at);
  return m;
}
inline Values4 values4(const Codes4& w) {
  Values4 v;
  std::memcpy(v.table, w.table, sizeof v.table);
  v.map = w.map ? map8(w.map) : Map8{};
  return v;
}
inline Scales4 scales4(const Codes4& w) {
  const bool nested = w.absmax.dtype == Dtype::u8;
  int shift = 0;
  while (int64_t(1) << shift < w.block) ++shift;
  return {nested ? nullptr : w.absmax.as<const float>(),
          nested ? w.absmax.as<const uint8_t>() : nullptr,
          nested ? w.nested_absmax.as<const float>() : nullptr,
          nested ? w.nested_offset.as<const float>() : nullptr,
          int(w.block),
          int64_t(1) << shift == w.block ? shift : -1};
}

// Table and map in shared memory: 16 values lie in 16 banks, so look-ups of a warp do not get in each other's way.
struct Shared4 {
  float *table, *map;
};
constexpr size_t shared4_bytes = sizeof(Values4);

// All threads of the block, at its start. REQUIRES: blocks of 256 threads or more.
__device__ __forceinline__ Shared4 take_shared4(SharedMemory& shared, const Values4& values, bool nested) {
  const Shared4 out{shared.take<float>(16), shared.take<float>(256)};
  const int thread = int(threadIdx.x);
  if (thread < 16) out.table[thread] = values.table[thread];
  if (nested && thread < 256) out.map[thread] = values.map.at[thread];
  __syncthreads();
  return out;
}

// A scale as it comes from memory; what it stands for is asked later, so that many can be on their way at once.
struct Scale4 {
  float outer;    // absmax, or nested_absmax
  uint32_t code;  // when nested
};
__device__ __forceinline__ Scale4 fetch_scale(const Scales4& s, int64_t block) {
  if (s.absmax) return {s.absmax[block], 0};
  return {s.nested_absmax[block / nested_in_block], s.codes[block]};
}
__device__ __forceinline__ float scale_of(const Scales4& s, const Scale4& x, const float* map, float offset) {
  return s.absmax ? x.outer : map[x.code] * x.outer + offset;
}
__device__ __forceinline__ float offset_of(const Scales4& s) { return s.absmax ? 0.0f : s.nested_offset[0]; }

// Numbers below 2^-126 count as zero.
__device__ __forceinline__ float flushed(float x) { return fabsf(x) < 0x1p-126f ? 0.0f : x; }

// Whether products with this scale may be so small that they are flushed. Their sign stays.
__device__ __forceinline__ bool may_flush(float scale) { return !(fabsf(scale) >= 0x1p-100f); }
__device__ __forceinline__ float flushed_product(float x) { return fabsf(x) < 0x1p-126f ? from_bits(to_bits(x) & 0x80000000u) : x; }

// The value of element e of the codes in a word: the first of a byte in its high half. `table` by its bytes, so that a mask gives the
// place.
__device__ __forceinline__ float of_word(const float* table, uint32_t word, int e) {
  const int low = e / 2 * 8 + (e % 2 ? 0 : 4);
  const uint32_t offset = (low >= 2 ? word >> (low - 2) : word << 2) & 60;
  return *reinterpret_cast<const float*>(reinterpret_cast<const unsigned char*>(table) + offset);
}

__device__ __forceinline__ float product_of(float value, float scale, bool tiny) {
  const float product = value * scale;
  return tiny ? flushed_product(product) : product;
}

}  // namespace tessera::CUDA_SIDE
