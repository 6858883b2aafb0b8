#include "ops/adapters.h"

#include <cstdlib>

#include "core/error.h"
#include "core/rng.h"
#include "ops/gemm.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

constexpr uint64_t first_key = 0x0123456789abcdefull;

struct Adapters : OnEveryDevice {
  struct Case {
    int64_t m, k, r;
    int count;
    int64_t batch = 0;  // rows of the batch, where something is dropped
    float p = 0.3f;     // of the first; each other drops a little more
  };
  struct Made {
    Tensor x, room;
    std::vector<AdapterProduct> all;
    std::vector<std::vector<double>> xs;  // what each has of x
  };

  Made make(const Case& c) {
    Made made;
    made.x = memory.random(dtype, {c.m, c.k}, 1);
    for (int i = 0; i < c.count; ++i) {
      AdapterProduct p;
      p.t = memory.random(dtype, {c.m, c.r}, uint64_t(10 + i));
      p.a = memory.random(dtype, {c.r, c.k}, uint64_t(20 + i));
      p.da = memory.random(Dtype::f32, {c.r, c.k}, uint64_t(30 + i));
      p.scale = 0.5f * float(i + 1);
      if (c.batch) p.drop = {row_keys(c.batch), first_key + uint64_t(i), c.p + 0.1f * float(i)};
      made.all.push_back(p);
      made.xs.push_back(dropped(p.drop, to_doubles(made.x)));
    }
    if (c.batch && !drops_inside(made.all)) made.room = memory.zeros(dtype, {c.m, c.k});
    return made;
  }
  Tensor row_keys(int64_t batch) {
    std::vector<double> keys;
    for (int64_t b = 0; b < batch; ++b) keys.push_back(double(1000 + 77 * b));
    return memory.of(Dtype::i64, {batch}, keys);
  }

  // What dropout leaves of a matrix.
  static std::vector<double> dropped(const Drop& d, std::vector<double> x) {
    if (d.p == 0) return x;
    const std::vector<double> keys = to_doubles(d.row_keys);
    const size_t of_key = x.size() / keys.size();
    for (size_t i = 0; i < x.size(); ++i) {
      const auto key = uint64_t(keys[i / of_key]), at = uint64_t(i % of_key);
      const Philox4 words = philox({uint32_t(at / 4), uint32_t(at / 4 >> 32), uint32_t(key), uint32_t(key >> 32)}, d.key);
      x[i] = double(words[at % 4]) >= double(d.p) * 0x1p32 ? x[i] / (1 - double(d.p)) : 0;
    }
    return x;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, Adapters, ::testing::ValuesIn(every_device()), case_name);

// c (m, n) = sum over d < k of a[i * a_row + d * a_k] b[j * b_row + d * b_k].
std::vector<double> times(const std::vector<double>& a, int64_t a_row, int64_t a_k, const std::vector<double>& b, int64_t b_row,
                          int64_t b_k, int64_t m, int64_t n, int64_t k) {
  std::vector<double> c(size_t(m * n));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t d = 0; d < k; ++d) c[size_t(i * n + j)] += a[size_t(i * a_row + d * a_k)] * b[size_t(j * b_row + d * b_k)];
  return c;
}

// Ranks and sizes on both sides of what kernels of our own take: r = 5 and r = 72, k = 37 are formed one by one.
constexpr Adapters::Case cases[] = {{1, 8, 8, 1},      {70, 264, 8, 3},      {64, 128, 16, 3},    {65, 1100, 16, 2},   {130, 200, 24, 3},
                                    {40, 136, 64, 4},  {33, 72, 32, 2},      {20, 37, 5, 2},      {24, 40, 72, 2},     {2100, 40, 8, 1},
                                    {10, 24, 8, 3, 2}, {66, 136, 16, 3, 3},  {130, 520, 8, 2, 1}, {96, 264, 64, 4, 2}, {15, 40, 40, 2, 5},
                                    {12, 37, 5, 2, 2}, {1040, 24, 32, 1, 4}, {64, 1040, 16, 1, 2}};

std::string said(const Adapters::Case& c) {
  return "m " + std::to_string(c.m) + " k " + std::to_string(c.k) + " r " + std::to_string(c.r) + " x" + std::to_string(c.count) +
         (c.batch ? " dropout" : "");
}

TEST_P(Adapters, Forward) {
  for (const Case& c : cases) {
    const Made made = make(c);
    adapters(made.all, made.x, made.room);
    for (size_t i = 0; i < made.all.size(); ++i) {
      std::vector<double> t = times(made.xs[i], c.k, 1, to_doubles(made.all[i].a), c.k, 1, c.m, c.r, c.k);
      for (double& v : t) v *= double(made.all[i].scale);
      expect_close(made.all[i].t, t, tolerance, said(c).c_str());
    }
  }
}

TEST_P(Adapters, WeightGradientAccumulates) {
  for (const Case& c : cases) {
    const Made made = make(c);
    std::vector<std::vector<double>> wanted;
    for (size_t i = 0; i < made.all.size(); ++i) {
      wanted.push_back(to_doubles(made.all[i].da));
      const std::vector<double> more = times(to_doubles(made.all[i].t), 1, c.r, made.xs[i], 1, c.k, c.r, c.k, c.m);
      for (size_t e = 0; e < more.size(); ++e) wanted[i][e] += more[e];
    }
    adapters_backward(made.all, made.x, made.room);
    for (size_t i = 0; i < made.all.size(); ++i)
      expect_close(made.all[i].da, wanted[i], c.batch ? tolerance : 1e-5, said(c).c_str());  // dropout(x) itself is rounded on the CPU
  }
}

TEST_P(Adapters, InputGradientAccumulates) {
  for (const Case& c : cases) {
    const Made made = make(c);
    std::vector<double> wanted = to_doubles(made.x);
    for (const AdapterProduct& p : made.all) {
      const std::vector<double> more = dropped(p.drop, times(to_doubles(p.t), c.r, 1, to_doubles(p.a), 1, c.k, c.m, c.k, c.r));
      for (size_t e = 0; e < more.size(); ++e) wanted[e] += more[e];
    }
    adapters_input_gradient(made.x, made.all, made.room);
    expect_close(made.x, wanted, 2 * tolerance, said(c).c_str());  // dx is rounded after each where they are formed one by one
  }
}

// The gradient of an input that several layers read: their adapters' parts in one sum with those of the weights.
TEST_P(Adapters, NarrowTermsOfAProduct) {
  for (const int64_t r : {8, 16, 5})
    for (const bool accumulates : {false, true}) {
      const int64_t m = 70, n = 136, k = 48;
      const Tensor c = memory.random(dtype, {m, n}, 1), addend = memory.random(dtype, {m, n}, 2);
      std::vector<double> wanted = to_doubles(c);
      const std::vector<double> added = to_doubles(addend);
      for (size_t e = 0; e < wanted.size(); ++e) wanted[e] = (accumulates ? wanted[e] : 0) + added[e];
      Product p;
      p.c = c, p.alpha = 0.5f, p.accumulate = accumulates, p.addend = addend;
      for (const int64_t depth : {k, k, k, r, r, r}) {
        const Tensor a = memory.random(dtype, {m, depth}, uint64_t(3 + p.terms)),
                     b = memory.random(dtype, {depth, n}, uint64_t(13 + p.terms));
        const std::vector<double> more = times(to_doubles(a), depth, 1, to_doubles(b), 1, n, m, n, depth);
        for (size_t e = 0; e < more.size(); ++e) wanted[e] += 0.5 * more[e];
        p.add(a, b);
      }
      gemm(p);
      expect_close(c, wanted, 2 * tolerance, r == 5 ? "one by one" : "joined");
    }
}

TEST_P(Adapters, RefusesSizesThatDisagree) {
  Made made = make({10, 24, 8, 2});
  made.all[1].t = memory.zeros(dtype, {9, 8});
  EXPECT_THROW(adapters(made.all, made.x, made.room), Error);
  made = make({10, 24, 8, 2, 2});
  made.all[0].drop.row_keys = memory.zeros(Dtype::i64, {3});
  EXPECT_THROW(adapters_input_gradient(made.x, made.all, made.room), Error);
}

}  // namespace
}  // namespace tessera
