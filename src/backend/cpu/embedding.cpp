#include <cstring>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/embedding.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t column_grain = 64;  // columns in a piece of work that walks down all tokens

void backward(int threads, Tensor dtable, Tensor dout, Tensor ids) {
  const int64_t tokens = dout.rows(), cols = dout.cols();
  const int32_t* id = ids.as<int32_t>();
  dispatch_float(dout.dtype, [&]<class T>() {
    parallel_chunks(worth_threads(threads, dout.size()), cols, column_grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < tokens; ++t) {
        float* row = dtable.as<float>() + id[t] * cols;
        for_vectors(begin, end,
                    [&](auto d, int64_t i) { store(hn::Add(load(d, row + i), load(d, dout.as<T>() + t * cols + i)), d, row + i); });
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
HWY_EXPORT(backward);
}  // namespace

namespace {
// Row i of out = row from(i) of x, where to(i) says which row of out that is.
template <class To, class From>
void copy_rows(int threads, Tensor out, To to, Tensor x, From from, int64_t count) {
  const size_t bytes = size_t(x.cols()) * size_of(x.dtype);
  parallel_chunks(threads, count, int64_t(65536 / (bytes + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(out.as<std::byte>() + size_t(to(i)) * bytes, x.as<std::byte>() + size_t(from(i)) * bytes, bytes);
  });
}

int64_t same(int64_t i) { return i; }
}  // namespace

void CpuBackend::embedding(Tensor out, Tensor table, Tensor ids) {
  copy_rows(
      threads_, out, same, table, [id = ids.as<int32_t>()](int64_t i) { return id[i]; }, ids.size());
}

void CpuBackend::embedding_backward(Tensor dtable, Tensor dout, Tensor ids) { HWY_DYNAMIC_DISPATCH(backward)(threads_, dtable, dout, ids); }

void CpuBackend::gather_rows(Tensor out, Tensor x, Tensor index) { embedding(out, x, index); }

void CpuBackend::scatter_rows(Tensor out, Tensor x, Tensor index) {
  fill_zero(out);
  copy_rows(
      threads_, out, [at = index.as<int32_t>()](int64_t i) { return at[i]; }, x, same, index.size());
}

}  // namespace tessera
#endif
