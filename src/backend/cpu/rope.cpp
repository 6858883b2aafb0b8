#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rope.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t grain = 16384;  // elements in a piece of work

// One head: pairs (i, i + half).
template <class T>
void rotate(T* x, const float* cos, const float* sin, float sign, int64_t half) {
  for_vectors(0, half, [&](auto d, int64_t i) {
    const auto c = load(d, cos + i), s = hn::Mul(hn::Set(d, sign), load(d, sin + i));
    const auto a = load(d, x + i), b = load(d, x + half + i);
    store(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, x + i);
    store(hn::MulAdd(a, s, hn::Mul(b, c)), d, x + half + i);
  });
}

void rope(int threads, Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) {
  const int64_t heads = x.shape.dim[2], width = x.shape.dim[3], half = cos.cols();
  const float sign = inverse ? -1 : 1;
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(threads, positions.size(), grain / (heads * width), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = positions.as<int32_t>()[t] * half;
        for (int64_t h = 0; h < heads; ++h)
          rotate(x.as<T>() + (t * heads + h) * width, cos.as<float>() + at, sin.as<float>() + at, sign, half);
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
