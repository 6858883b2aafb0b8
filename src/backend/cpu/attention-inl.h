// What the attention kernels are made of: rows turned into blocks, products of blocks, the mask, exp.
// A block consists of lanes of 32 bits: each holds one f32 or, where the processor multiplies bf16 in pairs, two bf16 that are neighbours
// along the depth of the product the block is made for (Lane). Sums are always f32. A block lies in one of three ways:
//   rows     (n, row_lanes)             a query or key after the other, numbers side by side; filled up with zeros
//   stacked  (n / per_lane, padded(D))  a lane pairs two rows; with f32 the same as rows
//   panel    (depth, panel_width)       queries or keys side by side in vector lanes
// Included once per instruction set, as simd.h.
#if defined(TESSERA_BACKEND_CPU_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_ATTENTION_INL_H
#undef TESSERA_BACKEND_CPU_ATTENTION_INL_H
#else
#define TESSERA_BACKEND_CPU_ATTENTION_INL_H
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cpu/dot-inl.h"
#include "backend/cpu/parallel.h"
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

// A tile of sums stays in registers: 16 or 24 of 32, 12 of 16. With 16 lanes more sums gain nothing, and narrow panels waste less on the
// diagonal.
constexpr size_t tile_rows = lanes >= 16 || HWY_ARCH_ARM_A64 ? 8 : 4;
constexpr size_t tile_vectors = lanes >= 16 ? 2 : 3;
constexpr size_t panel_width = tile_vectors * 16;

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
constexpr size_t padded(size_t width) { return round_up(width, std::max<size_t>(lanes, 8)); }

enum class Lane { f32, bf16_pair };
template <Lane lane>
constexpr size_t per_lane = lane == Lane::f32 ? 1 : 2;
template <Lane lane>
constexpr size_t depth_lanes(size_t width) {
  return (width + per_lane<lane> - 1) / per_lane<lane>;
}
template <Lane lane>
constexpr size_t row_lanes(size_t width) {
  return padded(depth_lanes<lane>(width));
}

// Calls f<lane>() with the kind of lanes for tensors of this dtype.
template <class F>
void dispatch_lane(Dtype dtype, F&& f) {
  if constexpr (may_have_bf16_dot) {
    if (dtype == Dtype::bf16 && has_bf16_dot()) return f.template operator()<Lane::bf16_pair>();
  }
  f.template operator()<Lane::f32>();
}

// --- products ---------------------------------------------------------------------------------------------------------------------

// Lane (r, k) is data[r * stride + k]; seen transposed, data[k * stride + r].
struct Block {
  const float* data;
  size_t stride;
};

enum class Start { zero, sum, scaled };  // what a product is added to: nothing, c, or c * factor (a factor per row)

template <Lane lane>
HWY_INLINE FloatVec add_product(FloatVec sum, FloatVec x, FloatVec y) {
  if constexpr (lane == Lane::f32) return hn::MulAdd(x, y, sum);
  if constexpr (lane == Lane::bf16_pair) return add_dot<Dot::native>(sum, x, y);
}

// c (tile_rows, wide vectors) = start + a (tile_rows, depth) * b (depth, wide vectors), k ascending.
template <Lane lane, size_t wide, bool transposed, Start start>
HWY_INLINE void tile(float* HWY_RESTRICT c, size_t c_stride, Block a, Block b, size_t depth, const float* HWY_RESTRICT factor) {
  FloatVec sum[tile_rows][wide];
#pragma GCC unroll 8
  for (size_t r = 0; r < tile_rows; ++r) {
#pragma GCC unroll 3
    for (size_t v = 0; v < wide; ++v) {
      const float* at = c + r * c_stride + v * lanes;
      if constexpr (start == Start::zero) sum[r][v] = hn::Zero(floats);
      if constexpr (start == Start::sum) sum[r][v] = hn::LoadU(floats, at);
      if constexpr (start == Start::scaled) sum[r][v] = hn::Mul(hn::LoadU(floats, at), hn::Set(floats, factor[r]));
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
      for (size_t v = 0; v < wide; ++v) sum[r][v] = add_product<lane>(sum[r][v], x, columns[v]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < tile_rows; ++r) {
#pragma GCC unroll 3
    for (size_t v = 0; v < wide; ++v) hn::StoreU(sum[r][v], floats, c + r * c_stride + v * lanes);
  }
}

// REQUIRES: rows is a multiple of 8.
template <Lane lane, size_t wide, bool transposed, Start start>
HWY_NOINLINE void strip(float* c, size_t c_stride, size_t rows, Block a, Block b, size_t depth, const float* factor) {
  for (size_t r = 0; r < rows; r += tile_rows) {
    const Block part = {a.data + r * (transposed ? 1 : a.stride), a.stride};
    tile<lane, wide, transposed, start>(c + r * c_stride, c_stride, part, b, depth, factor ? factor + r : nullptr);
  }
}

// Panel c (rows, panel_width) = rows a (rows, depth) * panel b (depth, panel_width).
template <Lane lane>
void panel_product(float* c, size_t rows, Block a, const float* b, size_t depth) {
  for (size_t p = 0; p < panel_width; p += tile_vectors * lanes) {
    strip<lane, tile_vectors, false, Start::zero>(c + p, panel_width, rows, a, {b + p, panel_width}, depth, nullptr);
  }
}

// Rows c (rows, b.stride) = start + a (rows, depth) * stacked b (depth, b.stride).
template <Lane lane, bool transposed, Start start>
void row_product(float* c, size_t rows, Block a, Block b, size_t depth, const float* factor = nullptr) {
  for (size_t at = 0; at < b.stride;) {
    const size_t left = (b.stride - at) / lanes, wide = left == 4 ? 2 : std::min<size_t>(left, 3);
    const Block part = {b.data + at, b.stride};
    if (wide == 3) strip<lane, 3, transposed, start>(c + at, b.stride, rows, a, part, depth, factor);
    if (wide == 2) strip<lane, 2, transposed, start>(c + at, b.stride, rows, a, part, depth, factor);
    if (wide == 1) strip<lane, 1, transposed, start>(c + at, b.stride, rows, a, part, depth, factor);
    at += wide * lanes;
  }
}

// --- rows, stacks and panels ------------------------------------------------------------------------------------------------------

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

inline void load_floats(float* to, Tensor x, int64_t offset, size_t width) {
  dispatch_float(x.dtype, [&]<class T>() {
    const T* from = x.as<T>() + offset;
    for_vectors(0, int64_t(width), [&](auto d, int64_t i) { hn::StoreU(load(d, from + i), d, to + i); });
  });
  std::fill(to + width, to + padded(width), 0.0f);
}

inline void load_pairs(float* to, const Bf16* from, size_t width) {
  const hn::Repartition<uint16_t, Floats> halves;
  for (size_t i = 0; i < row_lanes<Lane::bf16_pair>(width); i += lanes) {
    const size_t left = width - std::min(width, 2 * i);
    const uint16_t* at = &(from + 2 * i)->bits;
    const auto x = left >= 2 * lanes ? hn::LoadU(halves, at) : hn::MaskedLoad(hn::FirstN(halves, left), halves, at);
    hn::Store(hn::BitCast(floats, x), floats, to + i);
  }
}

// One row of a block: x[offset, offset + width) and zeros; nothing but zeros when the row is not real.
template <Lane lane>
void load_row(float* to, Tensor x, int64_t offset, size_t width, bool real = true) {
  if (!real) return void(std::fill_n(to, row_lanes<lane>(width), 0.0f));
  if constexpr (lane == Lane::f32) load_floats(to, x, offset, width);
  if constexpr (lane == Lane::bf16_pair) load_pairs(to, x.as<Bf16>() + offset, width);
}

// The rows of a block (count, row_lanes) stacked: in `to`, which has stack_size floats, or where they are when it has none.
// REQUIRES: count is a multiple of per_lane.
template <Lane lane>
constexpr size_t stack_size(size_t count, size_t width) {
  return lane == Lane::f32 ? 0 : count / per_lane<lane> * padded(width);
}
template <Lane lane>
const float* stacked(float* to, const float* rows, size_t count, size_t width) {
  if constexpr (lane == Lane::f32) return rows;
  const hn::Rebind<uint32_t, Floats> wide;
  const hn::Rebind<uint16_t, Floats> narrow;
  for (size_t r = 0; r < count; r += 2, rows += 2 * row_lanes<lane>(width)) {
    const auto* even = reinterpret_cast<const uint16_t*>(rows);
    const auto* odd = reinterpret_cast<const uint16_t*>(rows + row_lanes<lane>(width));
    for (size_t i = 0; i < padded(width); i += lanes, to += lanes) {
      const auto low = hn::PromoteTo(wide, hn::LoadU(narrow, even + i)), high = hn::PromoteTo(wide, hn::LoadU(narrow, odd + i));
      hn::Store(hn::BitCast(floats, hn::Or(low, hn::ShiftLeft<16>(high))), floats, to);
    }
  }
  return to - count / 2 * padded(width);
}

// Rows 2 * pair and 2 * pair + 1 of a panel become even and odd, side by side if lanes hold pairs: then rounded to nearest, ties away from
// zero. Row `pair` of the pairs may take the place of f32 rows that are no longer needed.
template <Lane lane>
HWY_INLINE void store_two(float* panel, size_t pair, FloatVec even, FloatVec odd) {
  if constexpr (lane == Lane::f32) {
    hn::Store(even, floats, panel + 2 * pair * panel_width);
    hn::Store(odd, floats, panel + (2 * pair + 1) * panel_width);
  } else {
    const hn::RebindToUnsigned<Floats> du;
    const hn::Repartition<uint16_t, Floats> halves;
    const auto half = hn::Set(du, 0x8000);
    const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(du, even), half)), high = hn::Add(hn::BitCast(du, odd), half);
    const auto pairs = hn::OddEven(hn::BitCast(halves, high), hn::BitCast(halves, low));
    hn::Store(hn::BitCast(floats, pairs), floats, panel + pair * panel_width);
  }
}

// Numbers from `column` on of a row of lanes become x, rounded in the same way.
template <Lane lane>
HWY_INLINE void store_in_row(float* row, size_t column, FloatVec x) {
  if constexpr (lane == Lane::f32) {
    hn::Store(x, floats, row + column);
  } else {
    const hn::RebindToUnsigned<Floats> du;
    const hn::Rebind<uint16_t, Floats> narrow;
    const auto bits = hn::ShiftRight<16>(hn::Add(hn::BitCast(du, x), hn::Set(du, 0x8000)));
    hn::StoreU(hn::TruncateTo(narrow, bits), narrow, reinterpret_cast<uint16_t*>(row) + column);
  }
}

// x[offset, offset + width) = row * factor, rounded to x's dtype.
inline void store_row(Tensor x, int64_t offset, const float* row, size_t width, float factor) {
  dispatch_float(x.dtype, [&]<class T>() {
    T* to = x.as<T>() + offset;
    for_vectors(0, int64_t(width), [&](auto d, int64_t i) { store(hn::Mul(hn::LoadU(d, row + i), hn::Set(d, factor)), d, to + i); });
  });
}

// --- heads and what their queries see ---------------------------------------------------------------------------------------------

// One key head of one batch row, with the G query heads that share it. Their queries are one list of Tq * G rows, token by token: row r is
// head r % G at token r / G, so that neighbouring rows see nearly the same keys.
struct KeyHead {
  int64_t batch, head;
};
struct QueryRow {
  int64_t batch, token, head;
};

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

  KeyHead key_head(int64_t i) const { return {i / key_heads, i % key_heads}; }
  int64_t rows() const { return queries * group; }
  // Calls f(i, row begin + i) for i in [0, count).
  template <class F>
  void each_row(KeyHead of, int64_t begin, int64_t count, F&& f) const {
    const int64_t first = of.head * group, end = first + group;
    QueryRow row = {of.batch, begin / group, first + begin % group};
    for (int64_t i = 0; i < count; ++i) {
      f(size_t(i), row);
      if (++row.head == end) row = {of.batch, row.token + 1, first};
    }
  }

  int64_t query_offset(QueryRow row) const { return ((row.batch * queries + row.token) * heads + row.head) * int64_t(width); }
  int64_t key_offset(KeyHead of, int64_t key) const { return ((of.batch * keys + key) * key_heads + of.head) * int64_t(width); }
  int64_t lse_offset(QueryRow row) const { return (row.batch * heads + row.head) * queries + row.token; }
  // A row sees the keys first to last.
  int32_t last_key(QueryRow row) const { return int32_t(keys - queries + row.token); }
  int32_t first_key(QueryRow row) const {
    const int32_t start = starts[row.batch * queries + row.token];
    return window ? std::max(start, int32_t(last_key(row) - window + 1)) : start;
  }
};

// Which keys some rows see: together any_first to any_last, each of them at least all_first to all_last.
struct Sight {
  int32_t any_first, any_last, all_first, all_last;

  Sight() = default;
  Sight(const int32_t* first, const int32_t* last, size_t count)
      : any_first(*std::min_element(first, first + count)),
        any_last(*std::max_element(last, last + count)),
        all_first(*std::max_element(first, first + count)),
        all_last(*std::min_element(last, last + count)) {}
  bool any(int32_t from, int32_t to) const { return any_first <= to && any_last >= from; }
  bool all(int32_t from, int32_t to) const { return all_first <= from && all_last >= to; }
};

constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

// 2^x for x < 128, relative error 1.5e-7; 0 below -126.5, where the result would be subnormal; NaN for NaN.
// 2^n 2^y with n = round(x), |y| <= 1/2, and the polynomial of degree 5 with the least relative error. Adding 1.5 * 2^23 leaves n in the
// low bits of the sum, here with the bias of the exponent.
HWY_INLINE FloatVec exp2(FloatVec x) {
  const FloatVec magic = hn::Set(floats, 12582912.0f + 127);
  x = hn::Max(hn::Set(floats, -127.0f), x);  // in this order NaN stays
  const FloatVec biased = hn::Add(x, magic);
  const FloatVec y = hn::Sub(x, hn::Sub(biased, magic));
  FloatVec e = hn::MulAdd(y, hn::Set(floats, 0.0013276472f), hn::Set(floats, 0.00967554133f));
  e = hn::MulAdd(e, y, hn::Set(floats, 0.0555071327f));
  e = hn::MulAdd(e, y, hn::Set(floats, 0.240221197f));
  e = hn::MulAdd(e, y, hn::Set(floats, 0.693146967f));
  e = hn::MulAdd(e, y, hn::Set(floats, 1.00000007f));
  return hn::Mul(e, hn::BitCast(floats, hn::ShiftLeft<23>(hn::BitCast(ints, biased))));
}

// --- work on several threads --------------------------------------------------------------------------------------------------------

// How many of `all` pieces a thread takes at a time: up to `most`, but every thread should come several times.
inline size_t pieces_together(int threads, size_t all, size_t most) {
  return std::max<size_t>(std::min(most, all / (4 * size_t(threads))), 1);
}

// Calls worker(i) for i in [0, n): they begin in this order, each on the thread that is free first. make() gives the worker of a thread.
template <class Make>
void hand_out(int threads, size_t n, Make&& make) {
  std::atomic<size_t> next = 0;
  parallel_chunks(threads, threads, 1, [&](int64_t, int64_t) {
    auto worker = make();
    for (size_t i; (i = next++) < n;) worker(i);
  });
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
