// 4-bit codes and the 8-bit codes of their scales: the rules of backend/cpu/codebook4.cpp, bit for bit.
// A warp encodes a block; decoding runs at the speed of memory, a thread writing 16 bytes at a time.
#include "backend/cuda/codebook4.h"

#include <algorithm>
#include <cassert>
#include <cfloat>

#include "backend/cuda/codes4.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/device.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int per_block = 256;
constexpr int warps = per_block / warp_size;

unsigned blocks_for(int64_t pieces, int64_t each) { return unsigned((pieces + each - 1) / each); }

template <class F>
decltype(auto) dispatch_any_float(Dtype dtype, F&& f) {
  if (dtype == Dtype::f16) return f.template operator()<F16>();
  return dispatch_float(dtype, f);
}

// --- encoding --------------------------------------------------------------------------------------------------------------------

// Middles between neighbours; a code is the number of them below.
struct Middles4 {
  float at[15];
};
Middles4 middles4(const float* table) {
  Middles4 m;
  for (int i = 0; i < 15; ++i) m.at[i] = (table[i] + table[i + 1]) / 2;
  return m;
}

// NaN never is the largest.
__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }
__device__ __forceinline__ float warp_largest(float x) {
  for (int m = warp_size / 2; m; m /= 2) x = larger(x, __shfl_xor_sync(whole_warp, x, m));
  return x;
}

__device__ __forceinline__ unsigned code4_of(float y, const Middles4& middles) {
  unsigned code = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) code += y > middles.at[i];
  return code;
}

// A short last block is encoded as if zeros followed.
template <class T>
__global__ void __launch_bounds__(per_block)
    encode4_kernel(uint8_t* codes, float* absmax, const T* x, const Middles4 middles, int64_t n, int block) {
  const int lane = int(threadIdx.x) % warp_size;
  const int64_t b = int64_t(blockIdx.x) * warps + int(threadIdx.x) / warp_size, first = b * block;
  if (first >= n) return;
  const auto value = [&](int i) { return first + i < n ? flushed(value_of(x[first + i])) : 0.0f; };
  float largest = -FLT_MAX;
  for (int i = lane; i < block; i += warp_size) largest = larger(largest, fabsf(value(i)));
  largest = warp_largest(largest);
  if (lane == 0) absmax[b] = largest;
  const float inverse = flushed(1.0f / largest);
  for (int i = 2 * lane; i < block && first + i < n; i += 2 * warp_size)
    codes[(first + i) / 2] = uint8_t(code4_of(value(i) * inverse, middles) << 4 | code4_of(value(i + 1) * inverse, middles));
}

// The nearest entry of an ascending map; halfway between two the even index. middle[255] is NaN. NaN: 0.
__device__ __forceinline__ int code8_of(float y, const float* middle) {
  int code = 0;
#pragma unroll
  for (int step = 128; step; step /= 2)
    if (middle[code + step - 1] < y) code += step;
  return code + (middle[code] == y ? code & 1 : 0);
}

Map8 middles8(const float* map) {
  Map8 m;
  for (int i = 0; i < 255; ++i) m.at[i] = (map[i] + map[i + 1]) * 0.5f;
  m.at[255] = NAN;
  return m;
}

__global__ void __launch_bounds__(per_block)
    encode8_kernel(uint8_t* q, float* scale, const float* absmax, const Map8 middles, float offset, int64_t n) {
  SharedMemory shared;
  float* const middle = shared.take<float>(256);
  for (int i = int(threadIdx.x); i < 256; i += per_block) middle[i] = middles.at[i];
  __syncthreads();
  const int lane = int(threadIdx.x) % warp_size;
  const int64_t b = int64_t(blockIdx.x) * warps + int(threadIdx.x) / warp_size, first = b * nested_in_block;
  if (first >= n) return;
  const auto value = [&](int i) { return first + i < n ? flushed(absmax[first + i] - offset) : 0.0f; };
  float largest = -FLT_MAX;
  for (int i = lane; i < nested_in_block; i += warp_size) largest = larger(largest, fabsf(value(i)));
  largest = warp_largest(largest);
  if (lane == 0) scale[b] = largest;
  const float inverse = flushed(1.0f / largest);
  for (int i = lane; i < nested_in_block && first + i < n; i += warp_size) q[first + i] = uint8_t(code8_of(value(i) * inverse, middle));
}

// --- decoding --------------------------------------------------------------------------------------------------------------------

constexpr uint32_t packs_each = 4;  // loads of codes on their way at once
constexpr uint32_t per_round = per_block * packs_each;

template <class T>
__device__ __forceinline__ uint32_t to_word(float first, float second) {
  if constexpr (sizeof(T) == 4)
    return to_bits(first);
  else
    return rounded_pair<T>(first, second);
}

template <bool tiny, class T, int N>
__device__ __forceinline__ void decode_pack(Pack<uint32_t, 4>& pack, uint32_t word, const float* table, float scale) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto product = [&](int e) { return product_of(of_word(table, word, e), scale, tiny); };
    pack.at[i] = to_word<T>(product(N / 4 * i), N == 8 ? product(2 * i + 1) : 0);
  }
}
template <class T, int N>
__device__ __forceinline__ void write_pack(T* out, uint32_t word, const float* table, float scale) {
  Pack<uint32_t, 4> pack;
  if (may_flush(scale)) {
    decode_pack<true, T, N>(pack, word, table, scale);
  } else {
    decode_pack<false, T, N>(pack, word, table, scale);
  }
  *reinterpret_cast<Pack<uint32_t, 4>*>(out) = pack;
}

// Neighbouring threads write neighbouring packs of 16 bytes; a pack lies in one block. All loads of a thread go out before the first is
// used. REQUIRES: `scales.shift`, addresses aligned.
template <class T>
__global__ void __launch_bounds__(per_block)
    decode4_kernel(T* out, const uint8_t* codes, const Scales4 scales, const Values4 values, int64_t n) {
  SharedMemory shared;
  const Shared4 s = take_shared4(shared, values, !scales.absmax);
  constexpr int N = pack_of<T>, of_block = N == 8 ? 3 : 2;  // log2 N
  using Word = std::conditional_t<N == 8, uint32_t, uint16_t>;
  const float offset = offset_of(scales);
  const auto packs = uint32_t(n / N);
  const int to_block = scales.shift - of_block;
  for (uint32_t first = blockIdx.x * per_round + threadIdx.x; first < packs; first += gridDim.x * per_round) {
    Word word[packs_each];
    Scale4 scale[packs_each];
#pragma unroll
    for (uint32_t p = 0; p < packs_each; ++p) {
      const uint32_t wanted = first + p * per_block, pack = wanted < packs ? wanted : packs - 1;
      word[p] = reinterpret_cast<const Word*>(codes)[pack];
      scale[p] = fetch_scale(scales, pack >> to_block);
    }
#pragma unroll
    for (uint32_t p = 0; p < packs_each; ++p) {
      const uint32_t pack = first + p * per_block;
      if (pack < packs) write_pack<T, N>(out + size_t(pack) * N, word[p], s.table, scale_of(scales, scale[p], s.map, offset));
    }
  }
  const int64_t rest = int64_t(packs) * N + int(threadIdx.x);
  if (blockIdx.x == 0 && rest < n) {
    const float scale = scale_of(scales, fetch_scale(scales, rest / scales.block), s.map, offset);
    out[rest] = rounded<T>(product_of(of_word(s.table, codes[rest / 2], int(rest % 2)), scale, may_flush(scale)));
  }
}

// Any addresses and blocks.
template <class T>
__global__ void __launch_bounds__(per_block)
    decode4_single_kernel(T* out, const uint8_t* codes, const Scales4 scales, const Values4 values, int64_t n) {
  SharedMemory shared;
  const Shared4 s = take_shared4(shared, values, !scales.absmax);
  const float offset = offset_of(scales);
  for (int64_t i = int64_t(blockIdx.x) * per_block + int(threadIdx.x); i < n; i += int64_t(gridDim.x) * per_block) {
    const float scale = scale_of(scales, fetch_scale(scales, i / scales.block), s.map, offset);
    out[i] = rounded<T>(product_of(of_word(s.table, codes[i / 2], int(i % 2)), scale, may_flush(scale)));
  }
}

__global__ void __launch_bounds__(per_block)
    decode8_kernel(float* absmax, const uint8_t* q, const float* scale, const float* offset, const Map8 map, int64_t n) {
  SharedMemory shared;
  float* const values = shared.take<float>(256);
  for (int i = int(threadIdx.x); i < 256; i += per_block) values[i] = map.at[i];
  __syncthreads();
  for (int64_t i = int64_t(blockIdx.x) * per_block + int(threadIdx.x); i < n; i += int64_t(gridDim.x) * per_block)
    absmax[i] = values[q[i]] * scale[i / nested_in_block] + offset[0];
}

constexpr int64_t resident = 8;  // blocks of decoding that a multiprocessor holds

}  // namespace

void decode_codes4(Device& device, Tensor out, const Codes4& w) {
  const auto aligned = [](Tensor t, size_t to) { return reinterpret_cast<uintptr_t>(t.data) % to == 0; };
  const Scales4 scales = scales4(w);
  const bool packed = aligned(out, 16) && aligned(w.codes, 4) && scales.shift >= 3;
  dispatch_any_float(out.dtype, [&]<class T>() {
    const int64_t n = out.size(), needed = blocks_for(n, packed ? int64_t(per_round) * pack_of<T> : per_block);
    assert(n / pack_of<T> < int64_t(1) << 31);
    launch(device, packed ? decode4_kernel<T> : decode4_single_kernel<T>,
           {dim3(unsigned(std::min(needed, multiprocessors(device) * resident))), dim3(per_block), shared4_bytes}, out.as<T>(),
           w.codes.as<const uint8_t>(), scales, values4(w), n);
  });
}

void CudaBackend::codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block) {
  dispatch_any_float(x.dtype, [&]<class T>() {
    launch(*device_, encode4_kernel<T>, {dim3(blocks_for(absmax.size(), warps)), dim3(per_block)}, codes.as<uint8_t>(), absmax.as<float>(),
           x.as<const T>(), middles4(table), x.size(), int(block));
  });
}

void CudaBackend::codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block) {
  Codes4 w;
  w.block = block, w.table = table, w.codes = codes, w.absmax = absmax;
  decode_codes4(*device_, out, w);
}

void CudaBackend::nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map) {
  const int64_t needed = blocks_for(absmax.size(), per_block * 4);
  launch(*device_, decode8_kernel, {dim3(unsigned(std::min(needed, multiprocessors(*device_) * resident))), dim3(per_block), sizeof(Map8)},
         absmax.as<float>(), q.as<const uint8_t>(), scale.as<const float>(), offset.as<const float>(), map8(map), absmax.size());
}

void CudaBackend::nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map) {
  launch(*device_, encode8_kernel, {dim3(blocks_for(scale.size(), warps)), dim3(per_block), sizeof(Map8)}, q.as<uint8_t>(),
         scale.as<float>(), absmax.as<const float>(), middles8(map), offset, absmax.size());
}

}  // namespace tessera::CUDA_SIDE
