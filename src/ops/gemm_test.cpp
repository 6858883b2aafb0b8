#include "ops/gemm.h"

#include <thread>

#include "core/error.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct Gemm : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, Gemm, ::testing::ValuesIn(every_device()), case_name);

constexpr Trans both[] = {Trans::no, Trans::yes};

struct Sizes {
  int64_t m, n, k;
  Shape a(Trans t) const { return t == Trans::no ? Shape{m, k} : Shape{k, m}; }
  Shape b(Trans t) const { return t == Trans::no ? Shape{k, n} : Shape{n, k}; }
};

std::vector<double> product(Sizes s, Tensor a, Trans ta, Tensor b, Trans tb, double alpha, const std::vector<double>& before) {
  const std::vector<double> x = to_doubles(a), y = to_doubles(b);
  std::vector<double> c = before;
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t p = 0; p < s.k; ++p) {
      const double left = alpha * x[size_t(ta == Trans::no ? i * s.k + p : p * s.m + i)];
      for (int64_t j = 0; j < s.n; ++j) c[size_t(i * s.n + j)] += left * y[size_t(tb == Trans::no ? p * s.n + j : j * s.k + p)];
    }
  return c;
}

TEST_P(Gemm, EqualsNaiveProduct) {
  const Sizes sizes[] = {{1, 1, 1}, {1, 33, 100}, {7, 1, 33}, {33, 7, 1}, {100, 33, 7}, {33, 100, 100}, {300, 500, 33}, {17, 2000, 40}};
  for (const Sizes s : sizes)
    for (const Trans ta : both)
      for (const Trans tb : both) {
        TestMemory own(*backend);
        const Tensor a = own.random(dtype, s.a(ta), 1), b = own.random(dtype, s.b(tb), 2), c = own.random(dtype, {s.m, s.n}, 3);
        gemm(c, a, ta, b, tb);
        expect_close(c, product(s, a, ta, b, tb, 1, std::vector<double>(size_t(s.m * s.n))), tolerance, "gemm");
      }
}

TEST_P(Gemm, ScalesAndAccumulates) {
  const Sizes s{300, 500, 33};
  for (const Dtype out : {dtype, Dtype::f32})
    for (const Trans ta : both)
      for (const Trans tb : both)
        for (const float alpha : {1.0f, -0.5f}) {
          TestMemory own(*backend);
          const Tensor a = own.random(dtype, s.a(ta), 1), b = own.random(dtype, s.b(tb), 2), c = own.random(out, {s.m, s.n}, 3);
          const std::vector<double> before = to_doubles(c);
          gemm(c, a, ta, b, tb, alpha, true);
          expect_close(c, product(s, a, ta, b, tb, alpha, before), out == Dtype::f32 ? 1e-5 : tolerance, "gemm +=");
        }
}

// Depths around the cuts: pairs, the rows that are copied because they start on one set of the cache, stretches of panels, narrow outputs.
TEST_P(Gemm, AnyDepthAndWidth) {
  for (const Sizes s : {Sizes{13, 40, 1024}, {25, 70, 9001}, {5, 16, 513}, {700, 8, 130}, {64, 17, 2048}, {1600, 3, 77}})
    for (const Trans ta : both)
      for (const Trans tb : both) {
        TestMemory own(*backend);
        const Tensor a = own.random(dtype, s.a(ta), 1), b = own.random(dtype, s.b(tb), 2), c = own.random(Dtype::f32, {s.m, s.n}, 3);
        const std::vector<double> before = to_doubles(c);
        gemm(c, a, ta, b, tb, 0.5f, true);
        expect_close(c, product(s, a, ta, b, tb, 0.5, before), 1e-5, s.m > s.n ? "tall" : "wide");
      }
}

// c = c + alpha (x W^T + t B^T) + bias + addend, rounded once.
TEST_P(Gemm, SumOfTermsBiasAndAddend) {
  const Sizes wide{37, 150, 600}, low{37, 150, 5};
  for (const Trans tb : both)
    for (const bool accumulate : {false, true}) {
      TestMemory own(*backend);
      const Tensor x = own.random(dtype, wide.a(Trans::no), 1), w = own.random(dtype, wide.b(tb), 2);
      const Tensor t = own.random(dtype, low.a(Trans::no), 3), b = own.random(dtype, low.b(tb), 4);
      Product p;
      p.c = own.random(dtype, {37, 150}, 5), p.transpose_b = tb == Trans::yes, p.alpha = 0.25f, p.accumulate = accumulate;
      p.bias = own.random(dtype, {150}, 6), p.addend = own.random(dtype, {37, 150}, 7);
      p.add(x, w), p.add(t, b);
      std::vector<double> wanted = to_doubles(p.addend), bias = to_doubles(p.bias), before = to_doubles(p.c);
      for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += bias[i % 150] + (accumulate ? before[i] : 0);
      wanted = product(low, t, Trans::no, b, tb, 0.25, product(wide, x, Trans::no, w, tb, 0.25, wanted));
      gemm(p);
      expect_close(p.c, wanted, tolerance, "terms");
    }
}

// A matrix of codes takes part with exactly its decoded values, in every place of a sum, whatever its sizes.
TEST_P(Gemm, CodesAreTheirDecodedValues) {
  for (const bool nested : {false, true})
    for (const Trans tb : both)
      for (const Sizes s : {Sizes{21, 192, 128}, {9, 100, 64}, {30, 30, 50}, {300, 33, 7}}) {
        TestMemory own(*backend);
        const Shape shape = s.b(tb);
        const int64_t size = shape.size(), blocks = (size + 63) / 64;
        float table[16], map[256];
        for (int i = 0; i < 16; ++i) table[i] = float(i * i - 100) / 125;
        for (int i = 0; i < 256; ++i) map[i] = float(i - 128) / 128;
        Codes4 w;
        w.rows = shape.dim[0], w.cols = shape.dim[1], w.table = table, w.map = map;
        const auto bytes = [&](int64_t count, auto value) {
          std::vector<double> values(static_cast<size_t>(count));
          for (int64_t i = 0; i < count; ++i) values[size_t(i)] = uint8_t(value(i));
          return own.of(Dtype::u8, {count}, values);
        };
        w.codes = bytes((size + 1) / 2, [](int64_t i) { return i * 37 + i / 64; });
        const Tensor scales = own.random(Dtype::f32, {blocks}, 9);
        if (nested) {
          w.absmax = bytes(blocks, [](int64_t i) { return i * 11; });
          w.nested_absmax = own.random(Dtype::f32, {(blocks + 255) / 256}, 7), w.nested_offset = own.random(Dtype::f32, {1}, 8);
          backend->nested_decode(scales, w.absmax, w.nested_absmax, w.nested_offset, map);
        } else {
          w.absmax = scales;
        }
        const Tensor values = own.zeros(dtype, shape), a = own.random(dtype, s.a(Trans::no), 1);
        backend->codebook4_decode(values, w.codes, scales, table, 64);
        std::vector<double> results[2];
        for (const bool decoded : {false, true}) {
          Product p;
          p.c = own.zeros(dtype, {s.m, s.n}), p.transpose_b = tb == Trans::yes;
          p.add(a, values), p.add(a, decoded ? Factor(values) : Factor(w));
          gemm(p);
          results[decoded] = to_doubles(p.c);
        }
        EXPECT_EQ(results[0], results[1]);
      }
}

TEST_P(Gemm, FlattensRankFour) {
  const Sizes s{2 * 3 * 5, 6, 4};
  const Tensor a = memory.random(dtype, {2, 3, 5, 4}, 1), b = memory.random(dtype, {6, 4}, 2), c = memory.zeros(dtype, {2, 3, 5, 6});
  gemm(c, a, Trans::no, b, Trans::yes);
  expect_close(c, product(s, a, Trans::no, b, Trans::yes, 1, std::vector<double>(size_t(s.m * s.n))), tolerance, "gemm");
}

TEST_P(Gemm, EmptySumIsZero) {
  const Tensor a = memory.zeros(dtype, {0, 3}), b = memory.zeros(dtype, {0, 4}), c = memory.random(dtype, {3, 4}, 1);
  const std::vector<double> before = to_doubles(c);
  gemm(c, a, Trans::yes, b, Trans::no, 1, true);
  EXPECT_EQ(to_doubles(c), before);
  gemm(c, a, Trans::yes, b, Trans::no);
  EXPECT_EQ(to_doubles(c), std::vector<double>(12));
}

// Tiles write nothing outside their part of the output.
TEST_P(Gemm, WritesOnlyTheOutput) {
  const Tensor wide = memory.random(dtype, {302, 500}, 3), c = wide.rows_from(1, 300);
  const std::vector<double> before = to_doubles(wide);
  gemm(c, memory.random(dtype, {300, 9}, 1), Trans::no, memory.random(dtype, {9, 500}, 2), Trans::no);
  const std::vector<double> after = to_doubles(wide);
  EXPECT_TRUE(std::equal(after.begin(), after.begin() + 500, before.begin()));
  EXPECT_TRUE(std::equal(after.end() - 500, after.end(), before.end() - 500));
}

TEST_P(Gemm, SameBitsOnAnyThreads) {
  const Sizes s{530, 650, 100};
  for (const Trans ta : both)
    for (const Trans tb : both)
      for (const bool accumulate : {false, true})
        expect_same_on_any_threads(GetParam().device, [&](TestMemory& m) {
          const Tensor a = m.random(dtype, s.a(ta), 1), b = m.random(dtype, s.b(tb), 2), c = m.random(dtype, {s.m, s.n}, 3);
          gemm(c, a, ta, b, tb, 0.25f, accumulate);
          return to_doubles(c);
        });
}

// Ranks as threads: each has its own backend.
TEST_P(Gemm, SameBitsFromSeveralBackendsAtOnce) {
  std::vector<std::vector<double>> results(3);
  std::vector<std::thread> ranks;
  for (size_t r = 0; r < results.size(); ++r)
    ranks.emplace_back([&, r] {
      const std::unique_ptr<Backend> own = make_test_backend(GetParam().device, 2);
      TestMemory m(*own);
      const Tensor a = m.random(dtype, {270, 64}, 1), b = m.random(dtype, {400, 64}, 2), c = m.zeros(dtype, {270, 400});
      for (int repeat = 0; repeat < 5; ++repeat) gemm(c, a, Trans::no, b, Trans::yes, 1, repeat > 0);
      results[r] = to_doubles(c);
    });
  for (std::thread& t : ranks) t.join();
  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

TEST(GemmGradients, OfALinearLayer) {
  const auto backend = make_backend("cpu", 2);
  TestMemory memory(*backend);
  const Tensor x = memory.random(Dtype::f32, {7, 33}, 1), w = memory.random(Dtype::f32, {10, 33}, 2);
  const Tensor dx = memory.zeros(Dtype::f32, x.shape), dw = memory.zeros(Dtype::f32, w.shape), y = memory.zeros(Dtype::f32, {7, 10});
  expect_gradients({.inputs = {x, w},
                    .gradients = {dx, dw},
                    .out = y,
                    .forward = [&] { gemm(y, x, Trans::no, w, Trans::yes); },
                    .backward =
                        [&](Tensor dy) {
                          gemm(dx, dy, Trans::no, w, Trans::no);
                          gemm(dw, dy, Trans::yes, x, Trans::no, 1, true);
                        }},
                   memory);
}

TEST(GemmErrors, NameTheShapes) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor a = memory.zeros(Dtype::f32, {3, 4}), b = memory.zeros(Dtype::f32, {5, 6}), c = memory.zeros(Dtype::f32, {3, 6});
  try {
    gemm(c, a, Trans::no, b, Trans::no);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("(3, 6) F32, (3, 4) F32, (5, 6) F32"), std::string::npos) << e.what();
  }
  EXPECT_THROW(gemm(c, a, Trans::no, memory.zeros(Dtype::bf16, {4, 6}), Trans::no), Error);
}

}  // namespace
}  // namespace tessera
