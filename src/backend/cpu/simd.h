// Loads and stores of f32 and bf16 as float vectors, for kernels written with Highway. Included once per instruction set: include it after
// hwy/highway.h in a file that uses hwy/foreach_target.h.
#if defined(TESSERA_BACKEND_CPU_SIMD_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_SIMD_H
#undef TESSERA_BACKEND_CPU_SIMD_H
#else
#define TESSERA_BACKEND_CPU_SIMD_H
#endif

#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using FloatVec = hn::Vec<Floats>;
constexpr Floats floats;  // the widest float vector

// D is a tag of float vectors. Pointers need no alignment.
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const Bf16* p) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<uint16_t, D> narrow;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(narrow, &p->bits))));
}

// IEEE binary16 in the lower half of each lane: the exponent is moved by a product, which is exact for its denormals too.
template <class D, class VU>
HWY_INLINE hn::Vec<D> from_f16(D d, VU bits) {
  const hn::RebindToUnsigned<D> du;
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(du, 0x7fff)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000)));
  const auto finite = hn::BitCast(du, hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f)));
  const auto special = hn::Or(magnitude, hn::Set(du, 0x7f800000));
  const auto is_finite = hn::Lt(hn::BitCast(d, magnitude), hn::BitCast(d, hn::Set(du, 0x7c00 << 13)));
  return hn::BitCast(d, hn::Or(sign, hn::IfThenElse(hn::RebindMask(du, is_finite), finite, special)));
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const F16* p) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<uint16_t, D> narrow;
  return from_f16(d, hn::PromoteTo(wide, hn::LoadU(narrow, &p->bits)));
}

// To bf16: nearest even, NaN made quiet, as Bf16(float).
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> to_bf16_bits(D, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<uint16_t, D> narrow;
  const auto bits = hn::BitCast(wide, v), upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(wide, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(wide, 0x7fff))));
  const auto is_nan = hn::RebindMask(wide, hn::IsNaN(v));
  return hn::TruncateTo(narrow, hn::IfThenElse(is_nan, hn::Or(upper, hn::Set(wide, 0x40)), rounded));
}

template <class D>
HWY_INLINE void store(hn::Vec<D> v, D d, float* p) {
  hn::StoreU(v, d, p);
}
template <class D>
HWY_INLINE void store(hn::Vec<D> v, D d, Bf16* p) {
  hn::StoreU(to_bf16_bits(d, v), hn::Rebind<uint16_t, D>(), &p->bits);
}

// The value v has after a store as T.
template <class T, class D>
HWY_INLINE hn::Vec<D> rounded_to(D d, hn::Vec<D> v) {
  if constexpr (sizeof(T) == 4) return v;
  const hn::Rebind<uint32_t, D> wide;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, to_bf16_bits(d, v))));
}

// The first `count` lanes from p, the others `rest`. For sums and maxima over the end of a row.
template <class D, class T>
HWY_INLINE hn::Vec<D> load_some(D d, const T* p, size_t count, float rest = 0) {
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = i < count ? float(p[i]) : rest;
  return hn::Load(d, lanes);
}

// Calls f(d, i) so that each i in [begin, end) is covered once: full vectors, then single lanes.
template <class F>
HWY_INLINE void for_vectors(int64_t begin, int64_t end, F&& f) {
  const int64_t step = int64_t(hn::Lanes(floats));
  int64_t i = begin;
  for (; i + step <= end; i += step) f(floats, i);
  for (; i < end; ++i) f(hn::CappedTag<float, 1>(), i);
}

// Sum over i in [0, n) of f(d, i), a vector of terms: four partial sums of vectors, then single terms, always in this order.
template <class F>
HWY_INLINE float sum_vectors(int64_t n, F&& f) {
  const int64_t step = int64_t(hn::Lanes(floats));
  FloatVec s0 = hn::Zero(floats), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    s0 = hn::Add(s0, f(floats, i));
    s1 = hn::Add(s1, f(floats, i + step));
    s2 = hn::Add(s2, f(floats, i + 2 * step));
    s3 = hn::Add(s3, f(floats, i + 3 * step));
  }
  for (; i + step <= n; i += step) s0 = hn::Add(s0, f(floats, i));
  float sum = hn::GetLane(hn::SumOfLanes(floats, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < n; ++i) sum += hn::GetLane(f(hn::CappedTag<float, 1>(), i));
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
