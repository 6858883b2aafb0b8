// Values of 4-bit codes: 16 products of the table and a block's scale, rounded once, then looked up. Included once per instruction set, as
// simd.h.
#if defined(TESSERA_BACKEND_CPU_CODES4_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_CODES4_INL_H
#undef TESSERA_BACKEND_CPU_CODES4_INL_H
#else
#define TESSERA_BACKEND_CPU_CODES4_INL_H
#endif

#include <cfloat>
#include <cstdint>

#include "backend/cpu/simd.h"
#include "core/product.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {

// Numbers below 2^-126 count as zero.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V flush(D d, V x) {
  return hn::IfThenZeroElse(hn::Lt(hn::Abs(x), hn::Set(d, FLT_MIN)), x);
}

// The 16 values a block can have.
template <class T>
HWY_INLINE void multiply(T* products, const float* table, float scale) {
  const hn::CappedTag<float, 16> d;
  for (size_t i = 0; i < 16; i += hn::Lanes(d)) {
    auto value = hn::Mul(hn::LoadU(d, table + i), hn::Set(d, scale));
    if (scale < 0x1p-100f) value = hn::CopySign(flush(d, value), value);
    store(value, d, products + i);
  }
}

// The first `count` values of a block, a multiple of 32.
HWY_INLINE void look_up(Bf16* out, const uint8_t* codes, const Bf16* products, int64_t count) {
#if HWY_TARGET == HWY_AVX3
  // The instruction reads five bits of an index: with the table twice, the bit above a code does not matter.
  const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(products)));
  for (int64_t i = 0; i < count; i += 32) {
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)));
    const __m512i index = _mm512_or_si512(_mm512_srli_epi32(both, 4), _mm512_slli_epi32(both, 16));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, table));
  }
#else
  const hn::FixedTag<uint8_t, 16> d;
  hn::Vec<decltype(d)> p0, p1;
  hn::LoadInterleaved2(d, reinterpret_cast<const uint8_t*>(products), p0, p1);
  for (int64_t i = 0; i < count; i += 32) {
    const auto both = hn::LoadU(d, codes + i / 2), high = hn::ShiftRight<4>(both), low = hn::And(both, hn::Set(d, 15));
    hn::StoreInterleaved4(hn::TableLookupBytes(p0, high), hn::TableLookupBytes(p1, high), hn::TableLookupBytes(p0, low),
                          hn::TableLookupBytes(p1, low), d, reinterpret_cast<uint8_t*>(out + i));
  }
#endif
}

HWY_INLINE void look_up(float* out, const uint8_t* codes, const float* products, int64_t count) {
  const hn::FixedTag<uint8_t, 16> d;
  const hn::FixedTag<float, 4> df;
  hn::Vec<decltype(d)> p0, p1, p2, p3;
  hn::LoadInterleaved4(d, reinterpret_cast<const uint8_t*>(products), p0, p1, p2, p3);
  HWY_ALIGN float high[16], low[16];
  const auto values = [&](auto code, float* to) {
    hn::StoreInterleaved4(hn::TableLookupBytes(p0, code), hn::TableLookupBytes(p1, code), hn::TableLookupBytes(p2, code),
                          hn::TableLookupBytes(p3, code), d, reinterpret_cast<uint8_t*>(to));
  };
  for (int64_t i = 0; i < count; i += 32) {
    const auto both = hn::LoadU(d, codes + i / 2);
    values(hn::ShiftRight<4>(both), high);
    values(hn::And(both, hn::Set(d, 15)), low);
    for (int k = 0; k < 16; k += 4) hn::StoreInterleaved2(hn::Load(df, high + k), hn::Load(df, low + k), df, out + i + 2 * k);
  }
}

// The values [first, first + count) of a block that starts at value `block_begin` of codes.
template <class T>
HWY_INLINE void look_up_part(T* out, const uint8_t* codes, const T* products, int64_t first, int64_t count) {
  const int64_t whole = first % 2 ? 0 : count / 32 * 32;
  if (whole) look_up(out, codes + first / 2, products, whole);
  for (int64_t i = whole; i < count; ++i) out[i] = products[codes[(first + i) / 2] >> ((first + i) % 2 ? 0 : 4) & 15];
}

inline float scale_of(const Codes4& w, int64_t block) {
  if (w.absmax.dtype == Dtype::f32) return w.absmax.as<const float>()[block];
  const float product = w.map[w.absmax.as<const uint8_t>()[block]] * w.nested_absmax.as<const float>()[block / 256];
  return product + *w.nested_offset.as<const float>();
}

// The values [first, first + count) of the whole matrix, flat.
template <class T>
HWY_INLINE void decode_values(T* out, const Codes4& w, int64_t first, int64_t count) {
  HWY_ALIGN T products[16];
  for (int64_t i = first, end = first + count; i < end;) {
    const int64_t block = i / w.block, stop = std::min(end, (block + 1) * w.block);
    multiply(products, w.table, scale_of(w, block));
    look_up_part(out + (i - first), w.codes.as<const uint8_t>(), products, i, stop - i);
    i = stop;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
