// Row-major products as a column-major library is asked for them, and the stand-in of the library.
#include "backend/cuda/matmul.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "testing/gradients.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

using cuda_host::column_major;
using cuda_host::ColumnMajor;
using cuda_host::MatmulShape;

TEST(ColumnMajorProduct, SwapsTheOperands) {
  struct Row {
    bool transpose_a, transpose_b;
    ColumnMajor wanted;
  };
  const Row rows[] = {{false, false, {{7, 3, false}, {3, 5, false}, {7, 5, false}}},
                      {false, true, {{3, 7, true}, {3, 5, false}, {7, 5, false}}},
                      {true, false, {{7, 3, false}, {5, 3, true}, {7, 5, false}}},
                      {true, true, {{3, 7, true}, {5, 3, true}, {7, 5, false}}}};
  for (const Row& row : rows) {
    const ColumnMajor given = column_major({.m = 5, .n = 7, .k = 3, .transpose_a = row.transpose_a, .transpose_b = row.transpose_b});
    EXPECT_EQ(given.left, row.wanted.left) << row.transpose_a << row.transpose_b;
    EXPECT_EQ(given.right, row.wanted.right) << row.transpose_a << row.transpose_b;
    EXPECT_EQ(given.result, row.wanted.result) << row.transpose_a << row.transpose_b;
  }
}

std::vector<double> numbers(int64_t count, uint64_t seed) {
  const Rng rng(seed, Purpose::init, "test");
  std::vector<double> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = double(rng.normal(i));
  return out;
}

// As BLAS defines it: element (i, j) of a matrix stands at i + j * (its rows).
std::vector<double> column_major_product(const ColumnMajor& l, const std::vector<double>& left, const std::vector<double>& right) {
  const auto at = [](const ColumnMajor::Matrix& m, int64_t i, int64_t j) { return size_t(m.transpose ? j + i * m.rows : i + j * m.rows); };
  const int64_t depth = l.left.transpose ? l.left.rows : l.left.cols;
  std::vector<double> out(static_cast<size_t>(l.result.rows * l.result.cols));
  for (int64_t i = 0; i < l.result.rows; ++i)
    for (int64_t j = 0; j < l.result.cols; ++j)
      for (int64_t p = 0; p < depth; ++p) out[at(l.result, i, j)] += left[at(l.left, i, p)] * right[at(l.right, p, j)];
  return out;
}

std::vector<double> row_major_product(const MatmulShape& s, const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> c(static_cast<size_t>(s.m * s.n));
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j)
      for (int64_t p = 0; p < s.k; ++p)
        c[size_t(i * s.n + j)] +=
            a[size_t(s.transpose_a ? p * s.m + i : i * s.k + p)] * b[size_t(s.transpose_b ? j * s.k + p : p * s.n + j)];
  return c;
}

TEST(ColumnMajorProduct, IsTheSameProduct) {
  for (const bool transpose_a : {false, true})
    for (const bool transpose_b : {false, true})
      for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>(5, 7, 3), {1, 4, 6}, {4, 1, 6}, {3, 2, 1}}) {
        const MatmulShape s{m, n, k, transpose_a, transpose_b};
        const std::vector<double> a = numbers(m * k, 1), b = numbers(k * n, 2);
        EXPECT_EQ(column_major_product(column_major(s), b, a), row_major_product(s, a, b)) << transpose_a << transpose_b;
      }
}

// Through the backend, in the dtypes of a GPU; the operations above it never use f16.
TEST(HostProduct, TakesF16) {
  const auto backend = make_test_backend("cuda_host", 1);
  TestMemory memory(*backend);
  for (const Dtype out : {Dtype::f16, Dtype::f32})
    for (const bool transpose_a : {false, true}) {
      const MatmulShape s{20, 30, 40, transpose_a, true};
      const Tensor a = memory.random(Dtype::f16, transpose_a ? Shape{40, 20} : Shape{20, 40}, 1),
                   b = memory.random(Dtype::f16, {30, 40}, 2);
      Product p;
      p.c = memory.random(out, {20, 30}, 3), p.transpose_a = transpose_a, p.transpose_b = true, p.alpha = 0.5f, p.accumulate = true;
      p.bias = memory.random(Dtype::f16, {30}, 4), p.addend = memory.random(Dtype::f16, {20, 30}, 5);
      p.add(a, b);
      const std::vector<double> before = to_doubles(p.c), bias = to_doubles(p.bias), addend = to_doubles(p.addend);
      std::vector<double> wanted = row_major_product(s, to_doubles(a), to_doubles(b));
      for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = before[i] + 0.5 * wanted[i] + bias[i % 30] + addend[i];
      backend->gemm(p);
      expect_close(p.c, wanted, out == Dtype::f32 ? 1e-5 : 1e-3, "f16");
    }
}

// Few rows by the kernel that decodes in registers, many by decoding first.
TEST(HostProduct, TakesCodesInF16) {
  const auto backend = make_test_backend("cuda_host", 1);
  TestMemory memory(*backend);
  const int64_t n = 40, k = 192;
  float table[16];
  for (int i = 0; i < 16; ++i) table[i] = float(i - 7) / 8;
  Codes4 w;
  w.rows = n, w.cols = k, w.table = table;
  w.codes = memory.of(Dtype::u8, {n * k / 2}, to_doubles(memory.ids({n * k / 2}, 11, 256)));
  w.absmax = memory.random(Dtype::f32, {n * k / 64}, 12);
  const Tensor values = memory.zeros(Dtype::f16, {n, k});
  backend->codebook4_decode(values, w.codes, w.absmax, table, 64);
  for (const int64_t m : {3, 20}) {
    const Tensor a = memory.random(Dtype::f16, {m, k}, 1);
    for (const Dtype out : {Dtype::f16, Dtype::f32}) {
      Product p;
      p.c = memory.zeros(out, {m, n}), p.transpose_b = true;
      p.add(a, w);
      backend->gemm(p);
      expect_close(p.c, row_major_product({m, n, k, false, true}, to_doubles(a), to_doubles(values)), out == Dtype::f32 ? 1e-5 : 1e-3,
                   "f16");
    }
  }
}

}  // namespace
}  // namespace tessera
