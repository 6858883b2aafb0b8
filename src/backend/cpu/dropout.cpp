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
#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
using Longs = hn::ScalableTag<uint64_t>;
using LongVec = hn::Vec<Longs>;
using Words = hn::RepartitionToNarrow<Longs>;
constexpr Longs longs;
constexpr Words words_of;
constexpr size_t counters = hn::MaxLanes(longs);  // one vector of them
constexpr int64_t grain = 16384;                  // elements in a piece of work

// The words of the counters first, first + 1, ... in order. Upper halves of lanes hold rubbish, which MulEven does not read.
HWY_INLINE void philox_words(uint64_t first, uint64_t row_key, uint64_t key, uint32_t* HWY_RESTRICT words) {
  const LongVec count = hn::Iota(longs, first);
  LongVec c0 = count, c1 = hn::ShiftRight<32>(count), c2 = hn::Set(longs, row_key), c3 = hn::Set(longs, row_key >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const LongVec p0 = hn::MulEven(hn::BitCast(words_of, c0), hn::Set(words_of, 0xD2511F53u));
    const LongVec p1 = hn::MulEven(hn::BitCast(words_of, c2), hn::Set(words_of, 0xCD9E8D57u));
    c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(longs, k0));
    c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(longs, k1));
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const LongVec low = hn::Set(longs, 0xffffffffu);
  const LongVec first_two = hn::Or(hn::And(c0, low), hn::ShiftLeft<32>(c1));
  const LongVec last_two = hn::Or(hn::And(c2, low), hn::ShiftLeft<32>(c3));
  hn::StoreInterleaved2(first_two, last_two, longs, reinterpret_cast<uint64_t*>(words));
}

struct Mask {
  uint64_t key, row_key;
  uint32_t threshold;  // smaller words drop their element
  float factor;
};

// Elements begin to end of a row. REQUIRES: begin is a multiple of 4.
template <class T>
void drop(T* out, const T* x, int64_t begin, int64_t end, const Mask& mask) {
  constexpr int64_t step = 4 * counters, width = hn::MaxLanes(floats);
  const FloatVec factor = hn::Set(floats, mask.factor);
  const hn::RebindToUnsigned<Floats> bits;
  const auto threshold = hn::Set(bits, mask.threshold);
  HWY_ALIGN uint32_t words[step];
  int64_t i = begin;
  for (; i + step <= end; i += step) {
    philox_words(uint64_t(i) / 4, mask.row_key, mask.key, words);
    for (int64_t j = 0; j < step; j += width) {
      const auto dropped = hn::RebindMask(floats, hn::Lt(hn::Load(bits, words + j), threshold));
      store(hn::IfThenZeroElse(dropped, hn::Mul(load(floats, x + i + j), factor)), floats, out + i + j);
    }
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
      const Mask mask = {key, uint64_t(row_keys.as<int64_t>()[b]), threshold, factor};
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
