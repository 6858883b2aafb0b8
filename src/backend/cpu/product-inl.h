// What products are made of: panels of the right-hand matrix, and tiles of sums.
// Depth is counted in steps: one f32, or one pair of bf16. A panel holds panel_width columns of the right-hand matrix, step by step: in
// each lane the number (or pair) of its column. The left-hand matrix is read where it stands, row by row.
// Included once per instruction set, as simd.h.
#if defined(TESSERA_BACKEND_CPU_PRODUCT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_PRODUCT_INL_H
#undef TESSERA_BACKEND_CPU_PRODUCT_INL_H
#else
#define TESSERA_BACKEND_CPU_PRODUCT_INL_H
#endif

#include <cstddef>
#include <cstring>

#include "backend/cpu/dot-inl.h"
#include "backend/cpu/simd.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr size_t panel_lanes = hn::MaxLanes(floats), panel_width = 2 * panel_lanes;
constexpr size_t tile_rows = panel_lanes >= 16 ? 12 : 4;  // 24 sums in 32 registers, or 8 in 16

template <class T>
constexpr size_t numbers_in_step = sizeof(T) == 4 ? 1 : 2;

// A part of the sum: `steps` steps of rows of a (T, `stride` numbers apart) and of a panel.
template <class T>
struct Segment {
  const T* a;
  size_t stride;
  const float* panel;
  size_t steps;
  const T* ahead;  // fetched into the cache meanwhile, as much as is read of a
};

template <class T, Dot dot>
HWY_INLINE FloatVec add_step(FloatVec sum, const T* x, FloatVec y) {
  if constexpr (sizeof(T) == 4)
    return hn::MulAdd(hn::Set(floats, *x), y, sum);
  else
    return add_dot<dot>(sum, x, y);
}

// sums (rows, wide vectors), panel_width apart = [sums] + the segments, in order. A panel of one vector per step when wide is 1.
template <class T, Dot dot, size_t rows, size_t wide>
HWY_NOINLINE void product_tile(float* HWY_RESTRICT sums, bool continues, const Segment<T>* segments, size_t count) {
  FloatVec sum[rows][wide];
#pragma GCC unroll 12
  for (size_t r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (size_t v = 0; v < wide; ++v) sum[r][v] = continues ? hn::Load(floats, sums + r * panel_width + v * panel_lanes) : hn::Zero(floats);
  for (const Segment<T>* s = segments; s != segments + count; ++s) {
    // Three rows to a pointer: the processor's addresses reach the second and third.
    const size_t stride = s->stride;
    const T* row[(rows + 2) / 3];
#pragma GCC unroll 4
    for (size_t i = 0; i < (rows + 2) / 3; ++i) row[i] = s->a + 3 * i * stride;
    const float* b = s->panel;
    const char* ahead = reinterpret_cast<const char*>(s->ahead);
    for (size_t k = 0; k < s->steps; ++k, b += wide * panel_lanes) {
      FloatVec y[wide];
#pragma GCC unroll 2
      for (size_t v = 0; v < wide; ++v) y[v] = hn::Load(floats, b + v * panel_lanes);
      hwy::Prefetch(ahead);
      ahead += rows * sizeof(float);
#pragma GCC unroll 12
      for (size_t r = 0; r < rows; ++r) {
        const T* x = row[r / 3] + (r % 3) * stride;
#pragma GCC unroll 2
        for (size_t v = 0; v < wide; ++v) sum[r][v] = add_step<T, dot>(sum[r][v], x, y[v]);
      }
#pragma GCC unroll 4
      for (size_t i = 0; i < (rows + 2) / 3; ++i) row[i] += numbers_in_step<T>;
    }
  }
#pragma GCC unroll 12
  for (size_t r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (size_t v = 0; v < wide; ++v) hn::Store(sum[r][v], floats, sums + r * panel_width + v * panel_lanes);
}

// --- panels -----------------------------------------------------------------------------------------------------------------------

// One 128-bit piece from each of lanes / 4 rows, 4 * stride apart.
HWY_INLINE FloatVec load_pieces(const float* x, [[maybe_unused]] size_t stride) {
  const hn::FixedTag<float, 4> four;
#if HWY_TARGET <= HWY_AVX3
  const hn::FixedTag<float, 8> eight;
  const auto low = hn::Combine(eight, hn::LoadU(four, x + 4 * stride), hn::LoadU(four, x));
  const auto high = hn::Combine(eight, hn::LoadU(four, x + 12 * stride), hn::LoadU(four, x + 8 * stride));
  return hn::Combine(floats, high, low);
#elif HWY_TARGET <= HWY_AVX2
  return hn::Combine(floats, hn::LoadU(four, x + 4 * stride), hn::LoadU(four, x));
#else
  return hn::LoadU(four, x);
#endif
}

// to[c * to_stride + r] = from[r * stride + c] for panel_lanes rows and `columns` columns of 32 bits.
inline void transpose_lanes(float* HWY_RESTRICT to, size_t to_stride, const float* HWY_RESTRICT from, size_t stride, size_t columns) {
  size_t c = 0;
  for (; c + 4 <= columns; c += 4) {
    const FloatVec x0 = load_pieces(from + c, stride), x1 = load_pieces(from + c + stride, stride);
    const FloatVec x2 = load_pieces(from + c + 2 * stride, stride), x3 = load_pieces(from + c + 3 * stride, stride);
    const FloatVec low02 = hn::InterleaveLower(floats, x0, x2), low13 = hn::InterleaveLower(floats, x1, x3);
    const FloatVec high02 = hn::InterleaveUpper(floats, x0, x2), high13 = hn::InterleaveUpper(floats, x1, x3);
    float* out = to + c * to_stride;
    hn::StoreU(hn::InterleaveLower(floats, low02, low13), floats, out);
    hn::StoreU(hn::InterleaveUpper(floats, low02, low13), floats, out + to_stride);
    hn::StoreU(hn::InterleaveLower(floats, high02, high13), floats, out + 2 * to_stride);
    hn::StoreU(hn::InterleaveUpper(floats, high02, high13), floats, out + 3 * to_stride);
  }
  for (; c < columns; ++c)
    for (size_t r = 0; r < panel_lanes; ++r) std::memcpy(to + c * to_stride + r, from + r * stride + c, sizeof(float));
}

// One step of a panel from the rows of a matrix: a vector of lanes from row k, and from row k + 1 when numbers come in pairs.
HWY_INLINE FloatVec step_of_rows(const float* x, size_t) { return hn::LoadU(floats, x); }
HWY_INLINE FloatVec step_of_rows(const Bf16* x, size_t stride) {
  const hn::RebindToUnsigned<Floats> wide;
  const hn::Rebind<uint16_t, Floats> narrow;
  const auto even = hn::PromoteTo(wide, hn::LoadU(narrow, &x->bits)), odd = hn::PromoteTo(wide, hn::LoadU(narrow, &x[stride].bits));
  return hn::BitCast(floats, hn::Or(even, hn::ShiftLeft<16>(odd)));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
