// Functions over the elements of rows, two vectors at a time. Included once per instruction set, as simd.h.
// bf16 comes and goes cheapest when a vector of them is split into the elements 0, 2, 4, ... and 1, 3, 5, ...: one step each way, where
// neighbours in order cost several. Float operands are brought into that order.
#if defined(TESSERA_BACKEND_CPU_MAP_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_MAP_INL_H
#undef TESSERA_BACKEND_CPU_MAP_INL_H
#else
#define TESSERA_BACKEND_CPU_MAP_INL_H
#endif

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

using Bits = hn::RebindToUnsigned<Floats>;
using Narrow = hn::Repartition<uint16_t, Floats>;  // of two vectors of bf16
constexpr int64_t width = int64_t(hn::MaxLanes(floats));

// --- a pair: the 2 * width elements from p on, as two vectors ---------------------------------------------------------------------------
// T says in which order: bf16 even and odd elements, float the first and the second half.

template <class T, bool second, class X>
HWY_INLINE FloatVec load_of_pair(const X* p) {
  if constexpr (std::is_same_v<T, float>) return load(floats, p + (second ? width : 0));
  if constexpr (std::is_same_v<T, Bf16> && std::is_same_v<X, Bf16>) {
    const auto both = hn::BitCast(Bits(), hn::LoadU(Narrow(), &p->bits));
    return hn::BitCast(floats, second ? hn::And(both, hn::Set(Bits(), 0xffff0000u)) : hn::ShiftLeft<16>(both));
  }
  if constexpr (std::is_same_v<T, Bf16> && std::is_same_v<X, float>) {
    const FloatVec low = hn::LoadU(floats, p), high = hn::LoadU(floats, p + width);
    return second ? hn::ConcatOdd(floats, high, low) : hn::ConcatEven(floats, high, low);
  }
}

// v rounded to bf16 in the upper half of each lane, rubbish in the lower half. The same bits as stores of single vectors.
// REQUIRES: a NaN has zeros in the lower half of its bits, as when arithmetic makes it, or gets it from bf16.
HWY_INLINE hn::Vec<Bits> rounded_bits(FloatVec v) {
  const auto bits = hn::BitCast(Bits(), v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(Bits(), 1));
  return hn::Add(bits, hn::Add(odd, hn::Set(Bits(), 0x7fff)));
}

HWY_INLINE void store_pair(FloatVec first, FloatVec second, float* p) {
  hn::StoreU(first, floats, p);
  hn::StoreU(second, floats, p + width);
}
HWY_INLINE void store_pair(FloatVec first, FloatVec second, Bf16* p) {
  const auto even = hn::BitCast(Narrow(), hn::ShiftRight<16>(rounded_bits(first))), odd = hn::BitCast(Narrow(), rounded_bits(second));
  hn::StoreU(hn::OddEven(odd, even), Narrow(), &p->bits);
}

// The value v has after a store as T.
template <class T, class D>
HWY_INLINE hn::Vec<D> as_stored(D d, hn::Vec<D> v) {
  if constexpr (std::is_same_v<D, Floats> && std::is_same_v<T, Bf16>)
    return hn::BitCast(floats, hn::And(rounded_bits(v), hn::Set(Bits(), 0xffff0000u)));
  else
    return rounded_to<T>(d, v);
}

// --- rows ---------------------------------------------------------------------------------------------------------------------------

// What is not a whole pair, in order: vectors, then four lanes, then single ones.
template <class F>
HWY_INLINE void for_rest(int64_t i, int64_t n, F&& f) {
  for (; i + width <= n; i += width) f(floats, i);
  if constexpr (width > 4)
    for (; i + 4 <= n; i += 4) f(hn::CappedTag<float, 4>(), i);
  for (; i < n; ++i) f(hn::CappedTag<float, 1>(), i);
}

// out[i] = f(d, x[i]...) for i in [0, n). f takes vectors of the tag d and gives one. out may be one of x.
template <class T, class F, class... X>
HWY_INLINE void map(int64_t n, T* out, F&& f, const X*... x) {
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    const FloatVec first = f(floats, load_of_pair<T, false>(x + i)...), second = f(floats, load_of_pair<T, true>(x + i)...);
    store_pair(first, second, out + i);
  }
  for_rest(i, n, [&](auto d, int64_t i) { store(f(d, load(d, x + i)...), d, out + i); });
}

// The same with two results: f gives a struct of vectors a and b.
template <class V>
struct Two {
  V a, b;
};
template <class T, class F, class... X>
HWY_INLINE void map(int64_t n, T* out_a, T* out_b, F&& f, const X*... x) {
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    const auto first = f(floats, load_of_pair<T, false>(x + i)...), second = f(floats, load_of_pair<T, true>(x + i)...);
    store_pair(first.a, second.a, out_a + i);
    store_pair(first.b, second.b, out_b + i);
  }
  for_rest(i, n, [&](auto d, int64_t i) {
    const auto y = f(d, load(d, x + i)...);
    store(y.a, d, out_a + i);
    store(y.b, d, out_b + i);
  });
}

// How vectors become one number.
struct Sum {
  static constexpr float start = 0;
  template <class V>
  static HWY_INLINE V join(V a, V b) {
    return hn::Add(a, b);
  }
  template <class D, class V>
  static HWY_INLINE float of_lanes(D d, V v) {
    return hn::GetLane(hn::SumOfLanes(d, v));
  }
};
struct Largest {
  static constexpr float start = -std::numeric_limits<float>::infinity();
  template <class V>
  static HWY_INLINE V join(V a, V b) {
    return hn::Max(a, b);
  }
  template <class D, class V>
  static HWY_INLINE float of_lanes(D d, V v) {
    return hn::GetLane(hn::MaxOfLanes(d, v));
  }
};

// The sum, or the largest, of f(d, x[i]...) over i in [0, n): four partial results in vectors, then the rest, always in this order.
template <class How, class F, class T, class... X>
HWY_INLINE float reduce(int64_t n, F&& f, const T* x, const X*... more) {
  FloatVec part[4];
  for (FloatVec& p : part) p = hn::Set(floats, How::start);
  const auto add_pair = [&](int64_t i, FloatVec& first, FloatVec& second) {
    first = How::join(first, f(floats, load_of_pair<T, false>(x + i), load_of_pair<T, false>(more + i)...));
    second = How::join(second, f(floats, load_of_pair<T, true>(x + i), load_of_pair<T, true>(more + i)...));
  };
  int64_t i = 0;
  for (; i + 4 * width <= n; i += 4 * width) {
    add_pair(i, part[0], part[1]);
    add_pair(i + 2 * width, part[2], part[3]);
  }
  if (i + 2 * width <= n) {
    add_pair(i, part[0], part[1]);
    i += 2 * width;
  }
  float all = How::of_lanes(floats, How::join(How::join(part[0], part[1]), How::join(part[2], part[3])));
  const hn::CappedTag<float, 1> one;
  for_rest(i, n, [&](auto d, int64_t i) {
    const float rest = How::of_lanes(d, f(d, load(d, x + i), load(d, more + i)...));
    all = hn::GetLane(How::join(hn::Set(one, all), hn::Set(one, rest)));
  });
  return all;
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
