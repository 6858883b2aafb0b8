// Dot products of two bf16 numbers at a time, the step all bf16 products are made of. A vector of f32 lanes holds in each lane a pair of
// bf16: the even one in the low half. Included once per instruction set, as simd.h.
#if defined(TESSERA_BACKEND_CPU_DOT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_DOT_INL_H
#undef TESSERA_BACKEND_CPU_DOT_INL_H
#else
#define TESSERA_BACKEND_CPU_DOT_INL_H
#endif

#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

// How a pair is multiplied: by the processor's instruction (AVX512_BF16), or as two products of f32. Highway 1.0.3 has no name for the
// instruction; the kernel that uses it is chosen at run time, by has_bf16_dot().
enum class Dot { native, widened };

#if HWY_TARGET == HWY_AVX3
constexpr bool may_have_bf16_dot = true;
#else
constexpr bool may_have_bf16_dot = false;
#endif

inline bool has_bf16_dot() {
#if HWY_TARGET == HWY_AVX3
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

// sum + even(x) * even(y) + odd(x) * odd(y) in each lane. `x`: one pair in memory, for all lanes; y: a pair in each lane.
template <Dot dot>
HWY_INLINE FloatVec add_dot(FloatVec sum, const Bf16* x, FloatVec y) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (dot == Dot::native) {
    struct Pair {
      Bf16 even, odd;
    };
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum.raw) : "v"(y.raw), "m"(*reinterpret_cast<const Pair*>(x)));
    return sum;
  }
#endif
  const hn::RebindToUnsigned<Floats> du;
  const auto pairs = hn::BitCast(du, y);
  const FloatVec even = hn::BitCast(floats, hn::ShiftLeft<16>(pairs));
  const FloatVec odd = hn::BitCast(floats, hn::And(pairs, hn::Set(du, 0xffff0000u)));
  sum = hn::MulAdd(hn::Set(floats, float(x[0])), even, sum);
  return hn::MulAdd(hn::Set(floats, float(x[1])), odd, sum);
}

// The same with a pair of x in each lane.
template <Dot dot>
HWY_INLINE FloatVec add_dot(FloatVec sum, FloatVec x, FloatVec y) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (dot == Dot::native) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(y.raw), "v"(x.raw));
    return sum;
  }
#endif
  const hn::RebindToUnsigned<Floats> du;
  const auto a = hn::BitCast(du, x), b = hn::BitCast(du, y), high = hn::Set(du, 0xffff0000u);
  sum = hn::MulAdd(hn::BitCast(floats, hn::ShiftLeft<16>(a)), hn::BitCast(floats, hn::ShiftLeft<16>(b)), sum);
  return hn::MulAdd(hn::BitCast(floats, hn::And(a, high)), hn::BitCast(floats, hn::And(b, high)), sum);
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
