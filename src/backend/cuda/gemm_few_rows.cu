// c = x W^T for few rows of x and a W of 4-bit codes: the codes are read once and decoded in registers, as the left-hand operand of the
// tensor cores: c^T (n, m) = W x^T, with the rows of x as the 8 columns of a tile. A block forms 16 columns of c; its warps take turns
// along k, each a stretch of 128, and their sums are added in the order of the warps.
//
// Which k stands where in a fragment is free as long as both operands agree: a lane takes 32 neighbouring codes of a row (16 bytes, within
// one block of codes) for 8 products, 4 of them for each, and the same places of x.
#include "backend/cuda/codes4.h"
#include "backend/cuda/device.h"
#include "backend/cuda/gemm_parts.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int per_block = 256;
constexpr int warps = per_block / warp_size;
constexpr int tile = 16;      // columns of c in a block
constexpr int rows_tile = 8;  // rows of c
constexpr int of_lane = 32;   // codes
constexpr int stretch = 4 * of_lane;

using Words = Pack<uint32_t, 4>;  // 32 codes, or 8 numbers

struct Weights {
  const uint8_t* codes;
  Scales4 scales;
  int n, k;
};

// A narrow matrix beside the codes: + a (m, width) b (n, width)^T.
template <class T>
struct Narrow {
  const T *a, *b;
  int width;
};

template <class T, class C>
struct Out {
  C* c;
  int m;
  float alpha;
  bool accumulate;
  const T *bias, *addend;
};

// What a lane holds of a stretch: 32 codes of rows g and g + 8 of a tile, with their scales, and 32 numbers of row g of x.
struct Held {
  Words codes[2], x[4];
  Scale4 scale[2];
};

template <class T>
__device__ __forceinline__ void fetch(Held& held, const Weights& w, const T* x, int m, int row, int at) {
  const int g = int(threadIdx.x) % warp_size / 4;
  const bool valid = at < w.k;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int within = row + h * 8 < w.n ? row + h * 8 : w.n - 1;
    const int64_t first = int64_t(within) * w.k + (valid ? at : 0);
    held.codes[h] = *reinterpret_cast<const Words*>(w.codes + first / 2);
    held.scale[h] = fetch_scale(w.scales, first >> w.scales.shift);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) held.x[i] = valid && g < m ? *reinterpret_cast<const Words*>(x + int64_t(g) * w.k + at + i * 8) : Words{};
}

// Elements 2 p and 2 p + 1 of a word.
template <class T>
__device__ __forceinline__ uint32_t weight_pair(const float* table, uint32_t word, int p, float scale, bool tiny) {
  const float low = product_of(of_word(table, word, 2 * p), scale, tiny), high = product_of(of_word(table, word, 2 * p + 1), scale, tiny);
  return rounded_pair<T>(low, high);
}

template <class T, bool tiny>
__device__ __forceinline__ void multiply(float (&sums)[4], const Held& held, const float (&scale)[2], const float* table) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = weight_pair<T>(table, held.codes[r % 2].at[i], half * 2 + r / 2, scale[r % 2], tiny);
      const uint32_t b[2] = {held.x[i].at[half * 2], held.x[i].at[half * 2 + 1]};
      mma<T>(sums, a, b);
    }
}

// One element of c: row, col.
template <class T, class C>
__device__ __forceinline__ void finish(const Out<T, C>& out, const Narrow<T>& narrow, float sum, int row, int col, int n) {
  for (int i = 0; i < narrow.width; ++i)
    sum = fmaf(value_of(narrow.a[row * narrow.width + i]), value_of(narrow.b[int64_t(col) * narrow.width + i]), sum);
  sum *= out.alpha;
  const int64_t at = int64_t(row) * n + col;
  if (out.accumulate) sum += value_of(out.c[at]);
  if (out.bias) sum += value_of(out.bias[col]);
  if (out.addend) sum += value_of(out.addend[at]);
  out.c[at] = rounded<C>(sum);
}

template <class T, class C>
__global__ void __launch_bounds__(per_block)
    few_rows_kernel(const Out<T, C> out, const T* x, const Weights w, const Narrow<T> narrow, const Values4 values) {
  SharedMemory shared;
  const Shared4 s = take_shared4(shared, values, !w.scales.absmax);
  float* const sums_of_warps = shared.take<float>(warps * tile * rows_tile);
  const int warp = int(threadIdx.x) / warp_size, g = int(threadIdx.x) % warp_size / 4, t = int(threadIdx.x) % 4;
  const int col = int(blockIdx.x) * tile;

  const float offset = offset_of(w.scales);
  float sums[4] = {};
  Held held;
  int at = warp * stretch + t * of_lane;  // of this lane; the warp's stretch begins at `at - t * of_lane`
  fetch(held, w, x, out.m, col + g, at);
  for (; at - t * of_lane < w.k; at += warps * stretch) {
    Held next;
    fetch(next, w, x, out.m, col + g, at + warps * stretch);
    const float scale[2] = {scale_of(w.scales, held.scale[0], s.map, offset), scale_of(w.scales, held.scale[1], s.map, offset)};
    if (__ballot_sync(whole_warp, may_flush(scale[0]) || may_flush(scale[1]))) {
      multiply<T, true>(sums, held, scale, s.table);
    } else {
      multiply<T, false>(sums, held, scale, s.table);
    }
    held = next;
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) sums_of_warps[(warp * rows_tile + t * 2 + i % 2) * tile + g + i / 2 * 8] = sums[i];
  __syncthreads();
  const int thread = int(threadIdx.x), row = thread / tile;
  if (thread >= tile * rows_tile || row >= out.m || col + thread % tile >= w.n) return;
  float sum = sums_of_warps[thread];
  for (int i = 1; i < warps; ++i) sum += sums_of_warps[i * tile * rows_tile + thread];
  finish(out, narrow, sum, row, col + thread % tile, w.n);
}

template <class T, class C>
void launch_few_rows(Device& device, const Product& p) {
  const int at = p.term[0].b.is_codes() ? 0 : 1;
  const Codes4& codes = p.term[at].b.codes;
  const Weights w{codes.codes.as<const uint8_t>(), scales4(codes), int(codes.rows), int(codes.cols)};
  Narrow<T> narrow{};
  if (p.terms == 2) {
    const Term& other = p.term[1 - at];
    narrow = {other.a.as<const T>(), other.b.dense.as<const T>(), int(other.a.cols())};
  }
  const Out<T, C> out{p.c.as<C>(), int(p.c.rows()), p.alpha, p.accumulate, p.bias.as<const T>(), p.addend.as<const T>()};
  launch(device, few_rows_kernel<T, C>,
         {dim3(unsigned((w.n + tile - 1) / tile)), dim3(per_block), shared4_bytes + sizeof(float) * warps * tile * rows_tile}, out,
         p.term[at].a.as<const T>(), w, narrow, values4(codes));
}

template <class T>
void launch_few_rows(Device& device, const Product& p) {
  if (p.c.dtype == Dtype::f32) return launch_few_rows<T, float>(device, p);
  launch_few_rows<T, T>(device, p);
}

}  // namespace

static_assert(most_fused_rows == rows_tile);

void fused_product(Device& device, const Product& p) {
  if (p.term[0].a.dtype == Dtype::f16) return launch_few_rows<F16>(device, p);
  launch_few_rows<Bf16>(device, p);
}

}  // namespace tessera::CUDA_SIDE
