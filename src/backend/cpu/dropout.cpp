// The mask is Philox of core/rng.h, with one counter in each 64-bit lane.
#include <cmath>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"
#include "core/rng.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/dropout.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/map-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
using Longs = hn::ScalableTag<uint64_t>;
using LongVec = hn::Vec<Longs>;
constexpr Longs longs;
constexpr int64_t counters = hn::MaxLanes(longs);  // one vector of them
constexpr int64_t grain = 16384;                   // elements in a piece of work

struct Mask {
  Mask(uint64_t key, uint64_t row_key, uint32_t threshold, float factor)
      : key(key), row_key(row_key), threshold(threshold), factor(factor) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (auto& pair : round_keys) {
      pair[0] = k0, pair[1] = k1;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }
  uint64_t key, row_key;
  uint32_t threshold;  // smaller words drop their element
  float factor;
  uint64_t round_keys[10][2];
};

// The four words of each counter. Upper halves of lanes hold rubbish, which MulEven does not read.
struct FourWords {
  LongVec c0, c1, c2, c3;
};
HWY_INLINE FourWords philox_words(LongVec count, const Mask& mask) {
  const Bits halves;
  LongVec c0 = count, c1 = hn::ShiftRight<32>(count), c2 = hn::Set(longs, mask.row_key), c3 = hn::Set(longs, mask.row_key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const LongVec p0 = hn::MulEven(hn::BitCast(halves, c0), hn::Set(halves, 0xD2511F53u));
    const LongVec p1 = hn::MulEven(hn::BitCast(halves, c2), hn::Set(halves, 0xCD9E8D57u));
    c0 = hn::Xor3(hn::ShiftRight<32>(p1), c1, hn::Set(longs, mask.round_keys[round][0]));
    c2 = hn::Xor3(hn::ShiftRight<32>(p0), c3, hn::Set(longs, mask.round_keys[round][1]));
    c1 = p1;
    c3 = p0;
  }
  return {c0, c1, c2, c3};
}

HWY_INLINE hn::Vec<Bits> side_by_side(LongVec even, LongVec odd) {
  return hn::OddEven(hn::BitCast(Bits(), hn::ShiftLeft<32>(odd)), hn::BitCast(Bits(), even));
}

// The words of the 2 * width elements from i, a multiple of 4, on, in the order of load_of_pair<T>.
template <class T>
HWY_INLINE Two<hn::Vec<Bits>> words_of_pair(int64_t i, const Mask& mask) {
  const LongVec lane = hn::Iota(longs, 0), from = hn::Set(longs, uint64_t(i) / 4);
  if constexpr (sizeof(T) == 2) {
    const FourWords w = philox_words(hn::Add(from, lane), mask);
    return {side_by_side(w.c0, w.c2), side_by_side(w.c1, w.c3)};
  }
  // Counters 0, n/2, 1, n/2 + 1, ...: the interleaving, 128 bits at a time, then leaves them in order.
  const LongVec half = hn::Mul(hn::And(lane, hn::Set(longs, 1)), hn::Set(longs, counters / 2));
  const FourWords w = philox_words(hn::Add(from, hn::Add(hn::ShiftRight<1>(lane), half)), mask);
  const LongVec front = hn::BitCast(longs, side_by_side(w.c0, w.c1)), back = hn::BitCast(longs, side_by_side(w.c2, w.c3));
  return {hn::BitCast(Bits(), hn::InterleaveLower(longs, front, back)), hn::BitCast(Bits(), hn::InterleaveUpper(longs, front, back))};
}

// Elements begin to end of a row. REQUIRES: begin is a multiple of 4.
template <class T>
HWY_FLATTEN void drop(T* out, const T* x, int64_t begin, int64_t end, const Mask& mask) {
  const auto kept = [&](FloatVec v, hn::Vec<Bits> words) {
    const auto dropped = hn::Lt(words, hn::Set(Bits(), mask.threshold));
    return hn::IfThenZeroElse(hn::RebindMask(floats, dropped), hn::Mul(v, hn::Set(floats, mask.factor)));
  };
  static_assert(4 * counters == 2 * width);
  int64_t i = begin;
  for (; i + 2 * width <= end; i += 2 * width) {
    const auto words = words_of_pair<T>(i, mask);
    const FloatVec first = kept(load_of_pair<T, false>(x + i), words.a), second = kept(load_of_pair<T, true>(x + i), words.b);
    store_pair(first, second, out + i);
  }
  for (; i < end; i += 4) {
    const Philox4 four = philox({uint32_t(i / 4), uint32_t(i / 4 >> 32), uint32_t(mask.row_key), uint32_t(mask.row_key >> 32)}, mask.key);
    for (int64_t j = i; j < std::min(i + 4, end); ++j) out[j] = T(four[size_t(j - i)] < mask.threshold ? 0.0f : float(x[j]) * mask.factor);
  }
}

void dropout(int threads, Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p) {
  const int64_t row = x.size() / x.shape.dim[0], pieces = (row + grain - 1) / grain;
  const uint32_t threshold = uint32_t(std::ceil(double(p) * 0x1p32));
  const float factor = float(1 / (1 - double(p)));
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(worth_threads(threads, 8 * x.size()), x.shape.dim[0] * pieces, 1, [&](int64_t piece, int64_t) {
      const int64_t b = piece / pieces, begin = piece % pieces * grain;
      const Mask mask(key, uint64_t(row_keys.as<int64_t>()[b]), threshold, factor);
      drop(out.as<T>() + b * row, x.as<T>() + b * row, begin, std::min(begin + grain, row), mask);
    });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(dropout);
}  // namespace

void CpuBackend::dropout(Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p) {
  HWY_DYNAMIC_DISPATCH(dropout)(threads_, out, x, row_keys, key, p);
}

}  // namespace tessera
#endif
