#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rope.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/map-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t grain = 4096;  // elements in a piece of work
constexpr int64_t cost = 8;      // of an element, for worth_threads

// The heads of a token: pairs (i, i + half) of each.
template <bool inverse, class T>
HWY_FLATTEN void rotate(T* x, const float* cos, const float* sin, int64_t heads, int64_t width, int64_t half) {
  const auto turned = [](auto d, auto a, auto b, auto c, auto s) {
    using V = hn::Vec<decltype(d)>;
    if constexpr (inverse) return Two<V>{hn::MulAdd(b, s, hn::Mul(a, c)), hn::NegMulAdd(a, s, hn::Mul(b, c))};
    return Two<V>{hn::NegMulAdd(b, s, hn::Mul(a, c)), hn::MulAdd(a, s, hn::Mul(b, c))};
  };
  for (T* at = x; at < x + heads * width; at += width) map(half, at, at + half, turned, at, at + half, cos, sin);
}

void rope(int threads, Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) {
  const int64_t heads = x.shape.dim[2], width = x.shape.dim[3], half = cos.cols();
  dispatch_float(x.dtype, [&]<class T>() {
    const auto turn = inverse ? rotate<true, T> : rotate<false, T>;
    parallel_chunks(worth_threads(threads, cost * x.size()), positions.size(), grain / (heads * width), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = positions.as<int32_t>()[t] * half;
        turn(x.as<T>() + t * heads * width, cos.as<float>() + at, sin.as<float>() + at, heads, width, half);
      }
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
HWY_EXPORT(rope);
}  // namespace

void CpuBackend::rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) {
  HWY_DYNAMIC_DISPATCH(rope)(threads_, x, cos, sin, positions, inverse);
}

}  // namespace tessera
#endif
