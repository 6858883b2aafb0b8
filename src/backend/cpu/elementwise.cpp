#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/elementwise.cpp"
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

template <class To, class From>
void convert_range(To* out, const From* x, int64_t begin, int64_t end) {
  for_vectors(begin, end, [&](auto d, int64_t i) { store(load(d, x + i), d, out + i); });
}

void convert(int threads, Tensor out, Tensor x) {
  dispatch_float(out.dtype, [&]<class To>() {
    parallel_chunks(threads, x.size(), grain, [&](int64_t begin, int64_t end) {
      if (x.dtype == Dtype::f16) return convert_range(out.as<To>(), x.as<F16>(), begin, end);
      dispatch_float(x.dtype, [&]<class From>() { convert_range(out.as<To>(), x.as<From>(), begin, end); });
    });
  });
}

void add(int threads, Tensor out, Tensor x, Tensor y) {
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(threads, x.size(), grain, [&](int64_t begin, int64_t end) {
      for_vectors(begin, end,
                  [&](auto d, int64_t i) { store(hn::Add(load(d, x.as<T>() + i), load(d, y.as<T>() + i)), d, out.as<T>() + i); });
    });
  });
}

void accumulate(int threads, Tensor sum, Tensor x) {
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(threads, x.size(), grain, [&](int64_t begin, int64_t end) {
      for_vectors(begin, end,
                  [&](auto d, int64_t i) { store(hn::Add(load(d, sum.as<float>() + i), load(d, x.as<T>() + i)), d, sum.as<float>() + i); });
    });
  });
}

void add_bias(int threads, Tensor y, Tensor bias) {
  const int64_t cols = y.cols();
  dispatch_float(y.dtype, [&]<class T>() {
    parallel_chunks(threads, y.rows(), std::max<int64_t>(1, grain / cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for_vectors(0, cols, [&](auto d, int64_t i) {
          T* at = y.as<T>() + r * cols + i;
          store(hn::Add(load(d, at), load(d, bias.as<T>() + i)), d, at);
        });
    });
  });
}

void column_sum(int threads, Tensor sum, Tensor x) {
  const int64_t rows = x.rows(), cols = x.cols();
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_chunks(worth_threads(threads, x.size()), cols, column_grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows; ++r)
        for_vectors(begin, end, [&](auto d, int64_t i) {
          store(hn::Add(load(d, sum.as<float>() + i), load(d, x.as<T>() + r * cols + i)), d, sum.as<float>() + i);
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
HWY_EXPORT(convert);
HWY_EXPORT(add);
HWY_EXPORT(accumulate);
HWY_EXPORT(add_bias);
HWY_EXPORT(column_sum);
}  // namespace

void CpuBackend::convert(Tensor out, Tensor x) {
  if (out.dtype == x.dtype) return copy(out.data, x.data, x.bytes());
  HWY_DYNAMIC_DISPATCH(convert)(threads_, out, x);
}
void CpuBackend::add(Tensor out, Tensor x, Tensor y) { HWY_DYNAMIC_DISPATCH(add)(threads_, out, x, y); }
void CpuBackend::accumulate(Tensor sum, Tensor x) { HWY_DYNAMIC_DISPATCH(accumulate)(threads_, sum, x); }
void CpuBackend::add_bias(Tensor y, Tensor bias) { HWY_DYNAMIC_DISPATCH(add_bias)(threads_, y, bias); }
void CpuBackend::column_sum(Tensor sum, Tensor x) { HWY_DYNAMIC_DISPATCH(column_sum)(threads_, sum, x); }

}  // namespace tessera
#endif
