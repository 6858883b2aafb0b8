#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rmsnorm.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/map-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t grain = 4096;       // elements in a piece of work
constexpr int64_t cost = 16;          // of an element, for worth_threads
constexpr int64_t block_rows = 8;     // rows that are summed before the first of them is written, so that none waits for its sum
constexpr int64_t column_grain = 64;  // columns in a piece of work that walks down all rows

template <class T>
HWY_FLATTEN void forward_rows(T* out, float* rstd, const T* x, const T* w, int64_t rows, int64_t cols, float eps) {
  const auto square = [](auto, auto v) { return hn::Mul(v, v); };
  for (int64_t r = 0; r < rows; ++r) {
    const float squares = reduce<Sum>(cols, square, x + r * cols);
    rstd[r] = 1 / std::sqrt(squares / float(cols) + eps);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const auto scaled = [factor = rstd[r]](auto d, auto v, auto weight) {
      return hn::Mul(as_stored<T>(d, hn::Mul(v, hn::Set(d, factor))), weight);
    };
    map(cols, out + r * cols, scaled, x + r * cols, w);
  }
}

// dx = rstd * (g - n * mean(g * n)) with g = dy * w, n = x * rstd.
template <bool accumulates, class T>
HWY_FLATTEN void backward_rows(T* dx, const T* dy, const T* x, const T* w, const float* rstd, int64_t rows, int64_t cols) {
  const auto product = [](auto, auto dy, auto w, auto x) { return hn::Mul(hn::Mul(dy, w), x); };
  float mean[block_rows];
  for (int64_t r = 0; r < rows; ++r) mean[r] = reduce<Sum>(cols, product, dy + r * cols, w, x + r * cols) * rstd[r] / float(cols);
  for (int64_t r = 0; r < rows; ++r) {
    const auto gradient = [scale = rstd[r], mean = mean[r]](auto d, auto dy, auto w, auto x) {
      const auto factor = hn::Set(d, scale);
      return hn::Mul(factor, hn::NegMulAdd(hn::Mul(x, factor), hn::Set(d, mean), hn::Mul(dy, w)));
    };
    T* const to = dx + r * cols;
    if constexpr (accumulates) {
      const auto sum = [&](auto d, auto dy, auto w, auto x, auto before) { return hn::Add(before, gradient(d, dy, w, x)); };
      map(cols, to, sum, dy + r * cols, w, x + r * cols, to);
    } else {
      map(cols, to, gradient, dy + r * cols, w, x + r * cols);
    }
  }
}

// Calls f(row, count) for blocks of rows.
template <class F>
void for_row_blocks(int threads, int64_t rows, int64_t cols, F&& f) {
  parallel_chunks(worth_threads(threads, cost * rows * cols), rows, grain / cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r += block_rows) f(r, std::min(block_rows, end - r));
  });
}

void forward(int threads, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
  const int64_t cols = x.cols();
  dispatch_float(x.dtype, [&]<class T>() {
    for_row_blocks(threads, x.rows(), cols, [&](int64_t r, int64_t count) {
      forward_rows(out.as<T>() + r * cols, rstd.as<float>() + r, x.as<T>() + r * cols, w.as<T>(), count, cols, eps);
    });
  });
}

void backward(int threads, Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulates) {
  const int64_t cols = x.cols();
  dispatch_float(x.dtype, [&]<class T>() {
    const auto write_rows = accumulates ? backward_rows<true, T> : backward_rows<false, T>;
    for_row_blocks(threads, x.rows(), cols, [&](int64_t r, int64_t count) {
      const int64_t at = r * cols;
      write_rows(dx.as<T>() + at, dy.as<T>() + at, x.as<T>() + at, w.as<T>(), rstd.as<float>() + r, count, cols);
    });
  });
}

// dw += dy * n for n columns, n as the forward pass had it; rows come in order.
template <class T>
HWY_FLATTEN void add_columns(float* dw, int64_t n, const T* dy, const T* x, const float* rstd, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto add = [factor = rstd[r]](auto d, auto sum, auto dy, auto x) {
      return hn::MulAdd(dy, as_stored<T>(d, hn::Mul(x, hn::Set(d, factor))), sum);
    };
    map(n, dw, add, dw, dy + r * cols, x + r * cols);
  }
}

void backward_weight(int threads, Tensor dw, Tensor dy, Tensor x, Tensor rstd) {
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(worth_threads(threads, 4 * x.size()), x.cols(), column_grain, [&](int64_t i, int64_t end) {
      add_columns(dw.as<float>() + i, end - i, dy.as<T>() + i, x.as<T>() + i, rstd.as<float>(), x.rows(), x.cols());
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
