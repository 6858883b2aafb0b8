#include <cmath>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/cross_entropy.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/simd.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
// Highway's Exp makes NaN zero; a broken logit must reach the loss.
template <class D>
HWY_INLINE hn::Vec<D> exp_or_nan(D d, hn::Vec<D> x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

template <class T>
float largest(const T* x, int64_t n) {
  FloatVec most = hn::Set(floats, -INFINITY);
  const int64_t step = int64_t(hn::Lanes(floats));
  int64_t i = 0;
  for (; i + step <= n; i += step) most = hn::Max(most, load(floats, x + i));
  if (i < n) most = hn::Max(most, load_some(floats, x + i, size_t(n - i), -INFINITY));
  return hn::GetLane(hn::MaxOfLanes(floats, most));
}

template <class T, class G>
float one_row(G* gradient, const T* x, int64_t n, int64_t label, float scale) {
  const float most = largest(x, n), given = x[label];
  const auto share = [&](auto d, int64_t i) { return exp_or_nan(d, hn::Sub(load(d, x + i), hn::Set(d, most))); };
  const float sum = sum_vectors(n, share);
  if (gradient) {
    const float weight = scale / sum;
    for_vectors(0, n, [&](auto d, int64_t i) { store(hn::Mul(share(d, i), hn::Set(d, weight)), d, gradient + i); });
    gradient[label] = G((std::exp(given - most) / sum - 1) * scale);
  }
  return std::log(sum) + (most - given);
}

void cross_entropy(int threads, Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) {
  const int64_t cols = logits.cols();
  dispatch_float(logits.dtype, [&]<class T>() {
    dispatch_float(gradient.empty() ? logits.dtype : gradient.dtype, [&]<class G>() {
      parallel_chunks(worth_threads(threads, 8 * logits.size()), logits.rows(), 1, [&](int64_t r, int64_t) {
        G* out = gradient.empty() ? nullptr : gradient.as<G>() + r * cols;
        loss.as<float>()[r] = one_row(out, logits.as<T>() + r * cols, cols, labels.as<int32_t>()[r], scale);
      });
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
HWY_EXPORT(cross_entropy);
}  // namespace

void CpuBackend::cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) {
  HWY_DYNAMIC_DISPATCH(cross_entropy)(threads_, loss, gradient, logits, labels, scale);
}

}  // namespace tessera
#endif
