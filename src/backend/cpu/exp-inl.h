// e^x in float. Included once per instruction set, as simd.h.
#if defined(TESSERA_BACKEND_CPU_EXP_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_EXP_INL_H
#undef TESSERA_BACKEND_CPU_EXP_INL_H
#else
#define TESSERA_BACKEND_CPU_EXP_INL_H
#endif

#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

// x - n ln 2. Without fused multiplication the product needs an upper part of ln 2 with so few bits that it is exact.
template <class D, class V>
HWY_INLINE V less_ln2(D d, V x, V n) {
#if HWY_NATIVE_FMA
  return hn::NegMulAdd(n, hn::Set(d, 0.693147181f), x);
#else
  return hn::NegMulAdd(n, hn::Set(d, 1.42860677e-6f), hn::NegMulAdd(n, hn::Set(d, 0.693145751953125f), x));
#endif
}

// e^x for x <= 88: 0 below -88, NaN for NaN. The error stays below 1.5 units in the last place where |x| < 20, below 2.5 where |x| < 40,
// below 5 elsewhere.
// x = n ln 2 + r with |r| <= ln(2) / 2; e^r by the polynomial 1 + r + ... with the least relative error, 3.1e-9. Adding 1.5 * 2^23 leaves n
// in the low bits of the sum, here with the bias of the exponent.
template <class D, class V>
HWY_INLINE V exp(D d, V x) {
  const V magic = hn::Set(d, 0x1.8p23f + 127);
  x = hn::Max(hn::Set(d, -88.2f), x);  // in this order NaN stays
  const V biased = hn::MulAdd(x, hn::Set(d, 1.44269502f), magic);
  const V r = less_ln2(d, x, hn::Sub(biased, magic));
  V e = hn::MulAdd(r, hn::Set(d, 0.00138145848f), hn::Set(d, 0.00836872403f));
  e = hn::MulAdd(e, r, hn::Set(d, 0.041668389f));
  e = hn::MulAdd(e, r, hn::Set(d, 0.166665211f));
  e = hn::MulAdd(e, r, hn::Set(d, 0.49999994f));
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f));
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f));
  const hn::RebindToSigned<D> ints;
  return hn::Mul(e, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(ints, biased))));
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
