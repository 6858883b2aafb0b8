// Products with few rows of c, on every device; on the CPU with every instruction set.
#include <gtest/gtest.h>

#include "backend/backend.h"
#include "backend/cpu/targets.h"
#include "hwy/highway.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct FewRows : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, FewRows, ::testing::ValuesIn(every_device()), case_name);

constexpr float table[16] = {-1.0f, -0.7f, -0.53f, -0.4f, -0.28f, -0.18f, -0.09f, 0.0f,
                             0.08f, 0.16f, 0.25f,  0.34f, 0.44f,  0.56f,  0.72f,  1.0f};

const float* map() {
  static const auto values = [] {
    std::array<float, 256> out;
    for (int i = 0; i < 256; ++i) out[size_t(i)] = float(i - 127) / 130;
    return out;
  }();
  return values.data();
}

// Scales of about 1; `awkward`: some zero, below 2^-126, at the edge of it, and negative.
Codes4 make_codes(TestMemory& memory, int64_t rows, int64_t cols, bool nested, bool awkward = false) {
  const int64_t blocks = (rows * cols + 63) / 64;
  Codes4 w;
  w.rows = rows, w.cols = cols, w.table = table;
  w.codes = memory.of(Dtype::u8, {(rows * cols + 1) / 2}, to_doubles(memory.ids({(rows * cols + 1) / 2}, 11, 256)));
  if (!nested) {
    std::vector<double> scales = to_doubles(memory.random(Dtype::f32, {blocks}, 12));
    const double edges[] = {0, 1e-42, 1.3e-38, 3e-38, -1e-38, 1e-30};
    for (size_t i = 0; awkward && i < scales.size(); i += 2) scales[i] = edges[i / 2 % std::size(edges)];
    w.absmax = memory.of(Dtype::f32, {blocks}, scales);
    return w;
  }
  w.map = map();
  w.absmax = memory.of(Dtype::u8, {blocks}, to_doubles(memory.ids({blocks}, 13, 256)));
  w.nested_absmax = memory.random(Dtype::f32, {(blocks + 255) / 256}, 14);
  w.nested_offset = memory.of(Dtype::f32, {1}, {0.3});
  return w;
}

// The values as the decoding operations give them.
Tensor decoded(TestMemory& memory, const Codes4& w, Dtype dtype) {
  Tensor absmax = w.absmax;
  if (absmax.dtype == Dtype::u8) {
    absmax = memory.zeros(Dtype::f32, absmax.shape);
    memory.backend().nested_decode(absmax, w.absmax, w.nested_absmax, w.nested_offset, w.map);
  }
  const Tensor out = memory.zeros(dtype, {w.rows, w.cols});
  memory.backend().codebook4_decode(out, w.codes, absmax, table, w.block);
  return out;
}

enum class Kind { dense, codes, nested };
constexpr Kind kinds[] = {Kind::dense, Kind::codes, Kind::nested};

struct Right {
  Factor factor;
  Tensor values;
};

Right make_right(TestMemory& memory, Kind kind, Dtype dtype, int64_t n, int64_t k) {
  if (kind == Kind::dense) {
    const Tensor values = memory.random(dtype, {n, k}, 15);
    return {values, values};
  }
  const Codes4 codes = make_codes(memory, n, k, kind == Kind::nested);
  return {codes, decoded(memory, codes, dtype)};
}

void add_product(std::vector<double>& sum, Tensor a, Tensor b, double alpha) {
  const std::vector<double> x = to_doubles(a), y = to_doubles(b);
  const size_t m = size_t(a.rows()), n = size_t(b.rows()), k = size_t(a.cols());
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < n; ++j)
      for (size_t p = 0; p < k; ++p) sum[i * n + j] += alpha * x[i * k + p] * y[j * k + p];
}

template <class F>
void on_every_target(Backend& backend, F&& f) {
  if (!backend.host_can_read()) return f();
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    f();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

// Sums are f32 and nothing but a number of c is rounded: with c in f32 the tolerance is that of f32 for bf16 numbers too.
TEST_P(FewRows, EqualsTheNaiveProduct) {
  const std::array<int64_t, 2> sizes[] = {{1, 64}, {7, 128}, {33, 576}, {40, 200}, {3, 4160}, {5, 33}, {9, 7}, {2, 1}, {300, 64}};
  on_every_target(*backend, [&] {
    for (const auto [n, k] : sizes)
      for (const Kind kind : kinds)
        for (int64_t m = 1; m <= 4; ++m) {
          TestMemory own(*backend);
          const Right b = make_right(own, kind, dtype, n, k);
          Product p;
          p.c = own.zeros(Dtype::f32, {m, n});
          p.transpose_b = true;
          p.add(own.random(dtype, {m, k}, 1), b.factor);
          backend->gemm(p);
          std::vector<double> want(size_t(m * n));
          add_product(want, p.term[0].a, b.values, 1);
          expect_close(p.c, want, 1e-5, "product");
        }
  });
}

TEST_P(FewRows, AddsTermsBiasAddendAndWhatWasThere) {
  const int64_t n = 45, k = 192;
  on_every_target(*backend, [&] {
    for (const Kind kind : kinds)
      for (const int64_t r : {1, 8, 40})
        for (const Dtype out : {dtype, Dtype::f32})
          for (int64_t m = 1; m <= 4; ++m) {
            TestMemory own(*backend);
            const Right b = make_right(own, kind, dtype, n, k);
            const Tensor narrow = own.random(dtype, {n, r}, 2);
            Product p;
            p.c = own.random(out, {m, n}, 3);
            p.transpose_b = true, p.alpha = -0.5f, p.accumulate = true;
            p.bias = own.random(dtype, {n}, 4), p.addend = own.random(dtype, {m, n}, 5);
            p.add(own.random(dtype, {m, k}, 6), b.factor);
            p.add(own.random(dtype, {m, r}, 7), narrow);
            std::vector<double> want = to_doubles(p.c);
            const std::vector<double> bias = to_doubles(p.bias), addend = to_doubles(p.addend);
            for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % size_t(n)] + addend[i];
            add_product(want, p.term[0].a, b.values, p.alpha);
            add_product(want, p.term[1].a, narrow, p.alpha);
            backend->gemm(p);
            expect_close(p.c, want, out == Dtype::f32 ? 1e-5 : tolerance, "product");
          }
  });
}

// Rows of a that pick a weight each show the very numbers that decoding writes.
TEST_P(FewRows, ReadsEachWeightAsDecodingWritesIt) {
  const int64_t n = 11;
  on_every_target(*backend, [&] {
    for (const int64_t k : {64, 192, 50})
      for (const bool nested : {false, true}) {
        TestMemory own(*backend);
        const Codes4 codes = make_codes(own, n, k, nested, true);
        const std::vector<double> weights = to_doubles(decoded(own, codes, dtype));
        for (int64_t first = 0; first < k; first += 4) {
          const int64_t m = std::min<int64_t>(4, k - first);
          std::vector<double> one(size_t(m * k)), want;
          for (int64_t i = 0; i < m; ++i) one[size_t(i * k + first + i)] = 1;
          for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < n; ++j) want.push_back(weights[size_t(j * k + first + i)]);
          Product p;
          p.c = own.zeros(Dtype::f32, {m, n});
          p.transpose_b = true;
          p.add(own.of(dtype, {m, k}, one), codes);
          backend->gemm(p);
          EXPECT_EQ(to_doubles(p.c), want) << k << " columns, from " << first;
        }
      }
  });
}

TEST_P(FewRows, SameBitsOnAnyThreads) {
  for (const Kind kind : kinds)
    for (const int64_t m : {1, 3})
      expect_same_on_any_threads(GetParam().device, [&](TestMemory& own) {
        const int64_t n = 700, k = 1600;
        Product p;
        p.c = own.zeros(dtype, {m, n});
        p.transpose_b = true;
        p.add(own.random(dtype, {m, k}, 1), make_right(own, kind, dtype, n, k).factor);
        p.add(own.random(dtype, {m, 16}, 2), own.random(dtype, {n, 16}, 3));
        own.backend().gemm(p);
        return to_doubles(p.c);
      });
}

}  // namespace
}  // namespace tessera
