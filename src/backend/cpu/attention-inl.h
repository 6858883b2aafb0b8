// What the attention kernels are made of: rows turned into f32 blocks, products of blocks, the mask, exp.
// A block is f32 and lies in one of two ways: as rows (n, padded(D)), filled up with zeros; or as a panel (n, panel_width), with queries
// or keys side by side in vector lanes. Included once per instruction set, as simd.h.
#if defined(TESSERA_BACKEND_CPU_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_ATTENTION_INL_H
#undef TESSERA_BACKEND_CPU_ATTENTION_INL_H
#else
#define TESSERA_BACKEND_CPU_ATTENTION_INL_H
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cpu/simd.h"
#include "core/tensor.h"
#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

using Ints = hn::RebindToSigned<Floats>;
using IntVec = hn::Vec<Ints>;
constexpr Ints ints;
constexpr size_t lanes = hn::MaxLanes(floats);

constexpr size_t panel_width = 48;
constexpr size_t tile_rows = lanes >= 16 || HWY_ARCH_ARM_A64 ? 8 : 4;  // by 3 vectors: 24 sums in 32 registers, or 12 in 16
constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
constexpr size_t padded(size_t width) { return round_up(width, std::max<size_t>(lanes, 8)); }

// --- products ---------------------------------------------------------------------------------------------------------------------

// Element (r, k) is data[r * stride + k]; seen transposed, data[k * stride + r].
struct Block {
  const float* data;
  size_t stride;
};

enum class Start { zero, sum, scaled };  // what a product is added to: nothing, c, or c * factor (a factor per column)

// c (tile_rows, wide vectors) = start + a (tile_rows, depth) * b (depth, wide vectors), k ascending.
template <size_t wide, bool transposed, Start start>
HWY_INLINE void tile(float* HWY_RESTRICT c, size_t c_stride, Block a, Block b, size_t depth, const float* HWY_RESTRICT factor) {
  FloatVec sum[tile_rows][wide];
#pragma GCC unroll 8
  for (size_t r = 0; r < tile_rows; ++r) {
#pragma GCC unroll 3
    for (size_t v = 0; v < wide; ++v) {
      const float* at = c + r * c_stride + v * lanes;
      if constexpr (start == Start::zero) sum[r][v] = hn::Zero(floats);
      if constexpr (start == Start::sum) sum[r][v] = hn::LoadU(floats, at);
      if constexpr (start == Start::scaled) sum[r][v] = hn::Mul(hn::LoadU(floats, at), hn::LoadU(floats, factor + v * lanes));
    }
  }
  const size_t row = transposed ? 1 : a.stride, step = transposed ? a.stride : 1;
  for (size_t k = 0; k < depth; ++k) {
    FloatVec columns[wide];
#pragma GCC unroll 3
    for (size_t v = 0; v < wide; ++v) columns[v] = hn::LoadU(floats, b.data + k * b.stride + v * lanes);
#pragma GCC unroll 8
    for (size_t r = 0; r < tile_rows; ++r) {
      const FloatVec x = hn::Set(floats, a.data[r * row + k * step]);
#pragma GCC unroll 3
      for (size_t v = 0; v < wide; ++v) sum[r][v] = hn::MulAdd(x, columns[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < tile_rows; ++r) {
#pragma GCC unroll 3
    for (size_t v = 0; v < wide; ++v) hn::StoreU(sum[r][v], floats, c + r * c_stride + v * lanes);
  }
}

// REQUIRES: rows is a multiple of 8.
template <size_t wide, bool transposed, Start start>
HWY_NOINLINE void strip(float* c, size_t c_stride, size_t rows, Block a, Block b, size_t depth, const float* factor) {
  for (size_t r = 0; r < rows; r += tile_rows) {
    const Block part = {a.data + r * (transposed ? 1 : a.stride), a.stride};
    tile<wide, transposed, start>(c + r * c_stride, c_stride, part, b, depth, factor);
  }
}

// Panel c (rows, panel_width) = start + a (rows, depth) * panel b (depth, panel_width).
template <bool transposed, Start start>
void panel_product(float* c, size_t rows, Block a, const float* b, size_t depth, const float* factor = nullptr) {
  for (size_t p = 0; p < panel_width; p += 3 * lanes) {
    strip<3, transposed, start>(c + p, panel_width, rows, a, {b + p, panel_width}, depth, factor ? factor + p : nullptr);
  }
}

// Rows c (rows, b.stride) += a (rows, depth) * rows b (depth, b.stride).
inline void add_row_product(float* c, size_t rows, Block a, Block b, size_t depth) {
  for (size_t at = 0; at < b.stride;) {
    const size_t left = (b.stride - at) / lanes, wide = left == 4 ? 2 : std::min<size_t>(left, 3);
    const Block part = {b.data + at, b.stride};
    if (wide == 3) strip<3, false, Start::sum>(c + at, b.stride, rows, a, part, depth, nullptr);
    if (wide == 2) strip<2, false, Start::sum>(c + at, b.stride, rows, a, part, depth, nullptr);
    if (wide == 1) strip<1, false, Start::sum>(c + at, b.stride, rows, a, part, depth, nullptr);
    at += wide * lanes;
  }
}

// --- rows and panels --------------------------------------------------------------------------------------------------------------

// to (cols, to_stride) = the transpose of from (rows, from_stride). REQUIRES: rows and cols are multiples of 4.
inline void transpose(float* HWY_RESTRICT to, size_t to_stride, const float* HWY_RESTRICT from, size_t from_stride, size_t rows,
                      size_t cols) {
  const hn::CappedTag<float, 4> four;
  for (size_t c = 0; c < cols; c += 4) {
    for (size_t r = 0; r < rows; r += 4) {
      const float* x = from + r * from_stride + c;
      float* y = to + c * to_stride + r;
      const auto x0 = hn::LoadU(four, x), x1 = hn::LoadU(four, x + from_stride);
      const auto x2 = hn::LoadU(four, x + 2 * from_stride), x3 = hn::LoadU(four, x + 3 * from_stride);
      const auto low02 = hn::InterleaveLower(four, x0, x2), low13 = hn::InterleaveLower(four, x1, x3);
      const auto high02 = hn::InterleaveUpper(four, x0, x2), high13 = hn::InterleaveUpper(four, x1, x3);
      hn::StoreU(hn::InterleaveLower(four, low02, low13), four, y);
      hn::StoreU(hn::InterleaveUpper(four, low02, low13), four, y + to_stride);
      hn::StoreU(hn::InterleaveLower(four, high02, high13), four, y + 2 * to_stride);
      hn::StoreU(hn::InterleaveUpper(four, high02, high13), four, y + 3 * to_stride);
    }
  }
}

// One row of a block: x[offset, offset + width) as float and zeros up to padded(width); nothing but zeros when the row is not real.
inline void load_row(float* to, Tensor x, int64_t offset, size_t width, bool real = true) {
  if (!real) return void(std::fill_n(to, padded(width), 0.0f));
  dispatch_float(x.dtype, [&]<class T>() {
    const T* from = x.as<T>() + offset;
    for_vectors(0, int64_t(width), [&](auto d, int64_t i) { hn::StoreU(load(d, from + i), d, to + i); });
  });
  std::fill(to + width, to + padded(width), 0.0f);
}

// x[offset, offset + width) = row * factor, rounded to x's dtype.
inline void store_row(Tensor x, int64_t offset, const float* row, size_t width, float factor) {
  dispatch_float(x.dtype, [&]<class T>() {
    T* to = x.as<T>() + offset;
    for_vectors(0, int64_t(width), [&](auto d, int64_t i) { store(hn::Mul(hn::LoadU(d, row + i), hn::Set(d, factor)), d, to + i); });
  });
}

// --- heads and what their queries see ---------------------------------------------------------------------------------------------

// The queries of the G heads that share a key head are one list of Tq * G rows, token by token: row r is head r % G at token r / G.
// Neighbouring rows then see nearly the same keys.
struct Heads {
  int64_t queries, keys, heads, key_heads, group;  // Tq, Tk, H, K, G = H / K
  size_t width;                                    // D
  int64_t window;
  const int32_t* starts;

  Heads(Tensor q, Tensor k, Tensor first_keys, AttentionShape shape)
      : queries(q.shape.dim[1]),
        keys(k.shape.dim[1]),
        heads(q.shape.dim[2]),
        key_heads(k.shape.dim[2]),
        group(heads / key_heads),
        width(size_t(q.cols())),
        window(shape.window),
        starts(first_keys.as<const int32_t>()) {}

  int64_t rows() const { return queries * group; }
  int64_t query_offset(int64_t pair, int64_t row) const {  // pair: batch * K + key head
    const int64_t batch = pair / key_heads, head = pair % key_heads * group + row % group;
    return ((batch * queries + row / group) * heads + head) * int64_t(width);
  }
  int64_t key_offset(int64_t pair, int64_t key) const {
    return ((pair / key_heads * keys + key) * key_heads + pair % key_heads) * int64_t(width);
  }
  int64_t lse_offset(int64_t pair, int64_t row) const { return (pair * group + row % group) * queries + row / group; }
  // Row r sees the keys first to last.
  int32_t last_key(int64_t row) const { return int32_t(keys - queries + row / group); }
  int32_t first_key(int64_t pair, int64_t row) const {
    const int32_t start = starts[pair / key_heads * queries + row / group];
    return window ? std::max(start, int32_t(last_key(row) - window + 1)) : start;
  }
};

// e^x for x <= 0 or barely above, relative error 2e-7; 0 below -87, where the result would be subnormal; NaN for NaN.
// 2^n e^y with n = round(x / ln 2), |y| <= ln(2) / 2, and the Taylor series of e^y up to y^6.
HWY_INLINE FloatVec exp_nonpositive(FloatVec x) {
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(floats, 1.44269504f)));
  const FloatVec y = hn::NegMulAdd(hn::ConvertTo(floats, n), hn::Set(floats, 0.693147181f), x);
  FloatVec e = hn::MulAdd(y, hn::Set(floats, 1.0f / 720), hn::Set(floats, 1.0f / 120));
  e = hn::MulAdd(e, y, hn::Set(floats, 1.0f / 24));
  e = hn::MulAdd(e, y, hn::Set(floats, 1.0f / 6));
  e = hn::MulAdd(e, y, hn::Set(floats, 0.5f));
  e = hn::MulAdd(e, y, hn::Set(floats, 1.0f));
  e = hn::MulAdd(e, y, hn::Set(floats, 1.0f));
  const FloatVec power = hn::BitCast(floats, hn::ShiftLeft<23>(hn::Add(n, hn::Set(ints, 127))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(floats, -87.0f)), hn::Mul(e, power));
}

// Carves aligned blocks out of memory that the thread keeps. REQUIRES: one at a time on each thread.
class Scratch {
 public:
  explicit Scratch(size_t size) {
    thread_local hwy::AlignedFreeUniquePtr<float[]> memory;
    thread_local size_t room = 0;
    if (room < size) memory = hwy::AllocateAligned<float>(room = size);
    next_ = memory.get();
  }
  // REQUIRES: count is a multiple of 16.
  float* take(size_t count) {
    float* block = next_;
    next_ += count;
    return block;
  }

 private:
  float* next_;
};

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
