#include <cmath>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rmsnorm.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t grain = 16384;      // elements in a piece of work
constexpr int64_t column_grain = 64;  // columns in a piece of work that walks down all rows

template <class T>
void forward_row(T* out, float* rstd, const T* x, const T* w, int64_t cols, float eps) {
  const float squares = sum_vectors(cols, [&](auto d, int64_t i) {
    const auto v = load(d, x + i);
    return hn::Mul(v, v);
  });
  *rstd = 1 / std::sqrt(squares / float(cols) + eps);
  for_vectors(0, cols, [&](auto d, int64_t i) {
    const auto normal = rounded_to<T>(d, hn::Mul(load(d, x + i), hn::Set(d, *rstd)));
    store(hn::Mul(normal, load(d, w + i)), d, out + i);
  });
}

// dx = rstd * (g - n * mean(g * n)) with g = dy * w, n = x * rstd.
template <class T>
void backward_row(T* dx, const T* dy, const T* x, const T* w, float rstd, int64_t cols, bool accumulates) {
  const float product =
      sum_vectors(cols, [&](auto d, int64_t i) { return hn::Mul(hn::Mul(load(d, dy + i), load(d, w + i)), load(d, x + i)); });
  const float mean = product * rstd / float(cols);
  for_vectors(0, cols, [&](auto d, int64_t i) {
    const auto scale = hn::Set(d, rstd);
    const auto g = hn::Mul(load(d, dy + i), load(d, w + i)), n = hn::Mul(load(d, x + i), scale);
    const auto gradient = hn::Mul(scale, hn::NegMulAdd(n, hn::Set(d, mean), g));
    store(accumulates ? hn::Add(load(d, dx + i), gradient) : gradient, d, dx + i);
  });
}

void forward(int threads, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
  const int64_t cols = x.cols();
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(threads, x.rows(), grain / cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        forward_row(out.as<T>() + r * cols, rstd.as<float>() + r, x.as<T>() + r * cols, w.as<T>(), cols, eps);
    });
  });
}

void backward(int threads, Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulates) {
  const int64_t cols = x.cols();
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(threads, x.rows(), grain / cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        backward_row(dx.as<T>() + r * cols, dy.as<T>() + r * cols, x.as<T>() + r * cols, w.as<T>(), rstd.as<float>()[r], cols, accumulates);
    });
  });
}

// dw += dy * n, n as the forward pass had it. Columns are shared out, rows come in order.
void backward_weight(int threads, Tensor dw, Tensor dy, Tensor x, Tensor rstd) {
  const int64_t rows = x.rows(), cols = x.cols();
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(worth_threads(threads, 4 * x.size()), cols, column_grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows; ++r)
        for_vectors(begin, end, [&](auto d, int64_t i) {
          const auto scale = hn::Set(d, rstd.as<float>()[r]);
          const auto normal = rounded_to<T>(d, hn::Mul(load(d, x.as<T>() + r * cols + i), scale));
          float* at = dw.as<float>() + i;
          store(hn::MulAdd(load(d, dy.as<T>() + r * cols + i), normal, load(d, at)), d, at);
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
HWY_EXPORT(forward);
HWY_EXPORT(backward);
HWY_EXPORT(backward_weight);
}  // namespace

void CpuBackend::rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
  HWY_DYNAMIC_DISPATCH(forward)(threads_, out, rstd, x, w, eps);
}

void CpuBackend::rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool dx_accumulates) {
  HWY_DYNAMIC_DISPATCH(backward)(threads_, dx, dy, x, w, rstd, dx_accumulates);
  if (!dw.empty()) HWY_DYNAMIC_DISPATCH(backward_weight)(threads_, dw, dy, x, rstd);
}

}  // namespace tessera
#endif
