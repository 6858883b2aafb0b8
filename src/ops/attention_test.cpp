#include "ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>

#include "testing/gradients.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

struct Problem {
  int64_t batch, queries, keys, heads, key_heads, width;
  AttentionShape shape;
  Tensor q, k, v, dout, starts;  // given
  Tensor out, lse, dq, dk, dv;   // computed
  std::vector<double> first;     // starts of each query
};

// Documents of the given lengths fill each row, the last one to the end.
std::vector<double> packed_starts(int64_t batch, int64_t queries, int64_t keys, const std::vector<int64_t>& lengths) {
  std::vector<double> row, all;
  for (const int64_t length : lengths) row.insert(row.end(), size_t(length), double(row.size()));
  row.resize(size_t(keys), row.empty() ? 0.0 : double(row.size()));
  for (int64_t b = 0; b < batch; ++b) all.insert(all.end(), row.end() - queries, row.end());
  return all;
}

Problem make_problem(TestMemory& memory, Dtype dtype, std::array<int64_t, 6> sizes, int64_t window = 0,
                     const std::vector<int64_t>& documents = {}, float q_scale = 1) {
  Problem p;
  std::tie(p.batch, p.queries, p.keys, p.heads, p.key_heads, p.width) = std::tuple_cat(sizes);
  p.shape = {1 / std::sqrt(float(p.width)), window};
  const Shape q_shape = {p.batch, p.queries, p.heads, p.width}, k_shape = {p.batch, p.keys, p.key_heads, p.width};
  p.q = memory.random(dtype, q_shape, 1, q_scale);
  p.k = memory.random(dtype, k_shape, 2);
  p.v = memory.random(dtype, k_shape, 3);
  p.dout = memory.random(dtype, q_shape, 4);
  p.first = packed_starts(p.batch, p.queries, p.keys, documents);
  p.starts = memory.of(Dtype::i32, {p.batch, p.queries}, p.first);
  p.out = memory.zeros(dtype, q_shape);
  p.lse = memory.zeros(Dtype::f32, {p.batch, p.heads, p.queries});
  p.dq = memory.zeros(dtype, q_shape);
  p.dk = memory.zeros(dtype, k_shape);
  p.dv = memory.zeros(dtype, k_shape);
  return p;
}

void forward(const Problem& p) { attention(p.out, p.lse, p.q, p.k, p.v, p.starts, p.shape); }
void backward(const Problem& p) { attention_backward(p.dq, p.dk, p.dv, p.dout, p.out, p.lse, p.q, p.k, p.v, p.starts, p.shape); }

double dot(const double* a, const double* b, int64_t n) { return std::inner_product(a, a + n, b, 0.0); }
void add_scaled(double* to, const double* x, double factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += factor * x[i];
}

// The definition, in double: softmax over the visible keys, and the gradients of sum(out * dout).
struct Expected {
  std::vector<double> out, lse, dq, dk, dv;

  explicit Expected(const Problem& p) {
    const auto q = to_doubles(p.q), k = to_doubles(p.k), v = to_doubles(p.v), dout = to_doubles(p.dout);
    const int64_t n = p.width;
    out.resize(q.size());
    dq.resize(q.size());
    dk.resize(k.size());
    dv.resize(k.size());
    lse.resize(size_t(p.batch * p.heads * p.queries));
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t i = 0; i < p.queries; ++i) {
        for (int64_t h = 0; h < p.heads; ++h) {
          const int64_t at = ((b * p.queries + i) * p.heads + h) * n, last = p.keys - p.queries + i;
          int64_t first = int64_t(p.first[size_t(b * p.queries + i)]);
          if (p.shape.window) first = std::max(first, last - p.shape.window + 1);
          const auto key = [&](int64_t j) { return ((b * p.keys + j) * p.key_heads + h / (p.heads / p.key_heads)) * n; };
          std::vector<double> w(size_t(last + 1));
          double largest = -INFINITY, sum = 0;
          for (int64_t j = first; j <= last; ++j) {
            w[size_t(j)] = double(p.shape.scale) * dot(&q[size_t(at)], &k[size_t(key(j))], n);
            largest = std::max(largest, w[size_t(j)]);
          }
          for (int64_t j = first; j <= last; ++j) sum += w[size_t(j)] = std::exp(w[size_t(j)] - largest);
          lse[size_t((b * p.heads + h) * p.queries + i)] = largest + std::log(sum);
          double delta = 0;
          for (int64_t j = first; j <= last; ++j) {
            w[size_t(j)] /= sum;
            add_scaled(&out[size_t(at)], &v[size_t(key(j))], w[size_t(j)], n);
            add_scaled(&dv[size_t(key(j))], &dout[size_t(at)], w[size_t(j)], n);
          }
          delta = dot(&dout[size_t(at)], &out[size_t(at)], n);
          for (int64_t j = first; j <= last; ++j) {
            const double ds = double(p.shape.scale) * w[size_t(j)] * (dot(&dout[size_t(at)], &v[size_t(key(j))], n) - delta);
            add_scaled(&dq[size_t(at)], &k[size_t(key(j))], ds, n);
            add_scaled(&dk[size_t(key(j))], &q[size_t(at)], ds, n);
          }
        }
      }
    }
  }
};

void expect_forward(const Problem& p, double tolerance) {
  const Expected expected(p);
  forward(p);
  expect_close(p.out, expected.out, tolerance, "out");
  expect_close(p.lse, expected.lse, 1e-5, "lse");
}

// Also where the gradient is 0, which is so when a query sees one key.
void expect_gradient(Tensor x, const std::vector<double>& expected, double tolerance, const char* what) {
  if (std::any_of(expected.begin(), expected.end(), [](double v) { return std::abs(v) > 1e-12; })) {
    return expect_close(x, expected, tolerance, what);
  }
  for (const double v : to_doubles(x)) ASSERT_LE(std::abs(v), tolerance) << what;
}

void expect_both(const Problem& p, double tolerance) {
  const Expected expected(p);
  forward(p);
  backward(p);
  expect_close(p.out, expected.out, tolerance, "out");
  expect_close(p.lse, expected.lse, 1e-5, "lse");
  expect_gradient(p.dq, expected.dq, tolerance, "dq");
  expect_gradient(p.dk, expected.dk, tolerance, "dk");
  expect_gradient(p.dv, expected.dv, tolerance, "dv");
}

bool same_bits(Tensor a, Tensor b) { return to_doubles(a) == to_doubles(b); }

// Tokens [begin, begin + count) of batch row 0 of x (B, T, H, D).
Tensor tokens(Tensor x, int64_t begin, int64_t count) {
  const int64_t heads = x.shape.dim[2];
  return x.rows_from(begin * heads, count * heads).reshaped({1, count, heads, x.cols()});
}

void fill_with_nan(Tensor x) {
  dispatch_float(x.dtype, [&]<class T>() {
    const std::vector<T> nan(size_t(x.size()), T(NAN));
    x.home->copy(x.data, nan.data(), x.bytes());
  });
}

int64_t count_nan(Tensor x) {
  const std::vector<double> values = to_doubles(x);
  return std::count_if(values.begin(), values.end(), [](double v) { return std::isnan(v); });
}

// The host takes long over the kernels of a GPU.
bool is_slow(const DeviceRow& row) { return std::string_view(row.device) == "cuda_host"; }

class Attention : public testing::TestWithParam<DeviceRow> {
 protected:
  std::unique_ptr<Backend> backend_ = make_test_backend(GetParam().device, 1);
  TestMemory memory_{*backend_};
  Dtype dtype_ = GetParam().dtype;
  double tolerance_ = GetParam().tolerance;
};

TEST_P(Attention, MatchesTheDefinitionForAnyHeadSize) {
  for (const int64_t width : {8, 18, 24, 64, 80, 128, 256}) {
    SCOPED_TRACE(width);
    expect_both(make_problem(memory_, dtype_, {1, 70, 70, 2, 1, width}), tolerance_);
  }
}

TEST_P(Attention, MatchesTheDefinitionForAnyLength) {
  for (const int64_t length : {1, 2, 15, 16, 17, 47, 48, 49, 95, 96, 97, 193, 300}) {
    SCOPED_TRACE(length);
    expect_both(make_problem(memory_, dtype_, {2, length, length, 2, 2, 16}), tolerance_);
  }
}

TEST_P(Attention, MatchesTheDefinitionAcrossBlocksForTheHeadSizesOfModels) {
  for (const int64_t width : {1, 33, 64, 80, 96, 128, 256}) {
    SCOPED_TRACE(width);
    const int64_t key_heads = is_slow(GetParam()) ? 1 : 2, group = is_slow(GetParam()) ? 2 : 3;
    expect_both(make_problem(memory_, dtype_, {1, 230, 230, key_heads * group, key_heads, width}), tolerance_);
  }
}

TEST_P(Attention, SharesKeysAmongTheHeadsOfAGroup) {
  for (const int64_t key_heads : {12, 4, 3}) {
    SCOPED_TRACE(key_heads);
    expect_both(make_problem(memory_, dtype_, {2, 130, 130, 12, key_heads, 16}), tolerance_);
  }
}

TEST_P(Attention, SeesOnlyTheWindow) {
  for (const int64_t window : {1, 2, 40, 96, 97, 98, 150, 1000}) {
    SCOPED_TRACE(window);
    expect_both(make_problem(memory_, dtype_, {1, 320, 320, 3, 1, 16}, window), tolerance_);
  }
}

TEST_P(Attention, SeesOnlyItsDocument) {
  expect_both(make_problem(memory_, dtype_, {2, 320, 320, 3, 1, 16}, 0, {1, 99, 30, 100}), tolerance_);
  expect_both(make_problem(memory_, dtype_, {2, 320, 320, 3, 1, 16}, 50, {1, 99, 30, 100}), tolerance_);
}

TEST_P(Attention, ManyHeadsTakeSeveralRoundsOfTheBackwardPass) {
  expect_both(make_problem(memory_, dtype_, {8, 3, 3, 32, 32, 256}), tolerance_);
}

TEST_P(Attention, PackedDocumentsEqualTheSameDocumentsApart) {
  const std::vector<int64_t> lengths = {70, 101, 29};
  const Problem packed = make_problem(memory_, dtype_, {1, 200, 200, 4, 2, 24}, 0, lengths);
  forward(packed);
  backward(packed);
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    SCOPED_TRACE(length);
    Problem alone = make_problem(memory_, dtype_, {1, length, length, 4, 2, 24});
    alone.q = tokens(packed.q, begin, length);
    alone.k = tokens(packed.k, begin, length);
    alone.v = tokens(packed.v, begin, length);
    alone.dout = tokens(packed.dout, begin, length);
    forward(alone);
    backward(alone);
    for (const auto& [one, all] : {std::pair(alone.out, packed.out), {alone.dq, packed.dq}, {alone.dk, packed.dk}, {alone.dv, packed.dv}}) {
      expect_close(one, to_doubles(tokens(all, begin, length)), tolerance_, "alone against packed");
    }
    begin += length;
  }
}

TEST_P(Attention, ADocumentDoesNotFeelItsNeighbours) {
  Problem p = make_problem(memory_, dtype_, {1, 200, 200, 4, 2, 24}, 0, {90, 110});
  forward(p);
  backward(p);
  Problem other = make_problem(memory_, dtype_, {1, 200, 200, 4, 2, 24}, 0, {90, 110});
  for (const auto& [x, seed] : {std::pair(other.q, 11), {other.k, 12}, {other.v, 13}, {other.dout, 14}}) {
    const Tensor first = tokens(x, 0, 90);
    backend_->copy(first.data, memory_.random(dtype_, first.shape, uint64_t(seed)).data, first.bytes());
  }
  forward(other);
  backward(other);
  EXPECT_FALSE(same_bits(tokens(p.out, 0, 90), tokens(other.out, 0, 90)));
  for (const auto& [a, b] : {std::pair(p.out, other.out), {p.dq, other.dq}, {p.dk, other.dk}, {p.dv, other.dv}}) {
    EXPECT_TRUE(same_bits(tokens(a, 90, 110), tokens(b, 90, 110)));
  }
}

// 96 tokens are whole blocks of queries and of keys, so what other documents hold is never multiplied, not even by zero.
TEST_P(Attention, BlocksOfOtherDocumentsAreNotTouched) {
  for (const int64_t poisoned : {0, 96, 288}) {
    SCOPED_TRACE(poisoned);
    const Problem p = make_problem(memory_, dtype_, {1, 384, 384, 6, 2, 24}, 0, {96, 96, 96});
    for (const Tensor x : {p.q, p.k, p.v, p.dout}) fill_with_nan(tokens(x, poisoned, 96));
    forward(p);
    backward(p);
    for (const Tensor x : {p.out, p.dq, p.dk, p.dv}) {
      EXPECT_EQ(count_nan(x), count_nan(tokens(x, poisoned, 96)));
      EXPECT_GT(count_nan(tokens(x, poisoned, 96)), 0);
    }
  }
}

TEST_P(Attention, BlocksBehindTheWindowAreNotTouched) {
  const Problem p = make_problem(memory_, dtype_, {1, 384, 384, 6, 2, 24}, 96);
  for (const Tensor x : {p.k, p.v}) fill_with_nan(tokens(x, 0, 96));  // seen by the queries before 96 + 95
  forward(p);
  backward(p);
  for (const Tensor x : {p.out, p.dq}) {
    EXPECT_EQ(count_nan(tokens(x, 192, 192)), 0);
    EXPECT_GT(count_nan(tokens(x, 0, 192)), 0);
  }
}

TEST_P(Attention, LastQueriesAloneGiveTheLastRowsOfTheFullRun) {
  for (const int64_t window : {0, 37}) {
    const Problem full = make_problem(memory_, dtype_, {1, 210, 210, 6, 2, 16}, window);
    forward(full);
    for (const int64_t queries : {1, 5, 60}) {
      SCOPED_TRACE(queries);
      Problem last = make_problem(memory_, dtype_, {1, queries, 210, 6, 2, 16}, window);
      last.q = tokens(full.q, 210 - queries, queries);
      expect_forward(last, tolerance_);
      expect_close(last.out, to_doubles(tokens(full.out, 210 - queries, queries)), tolerance_, "decode");
    }
  }
  expect_forward(make_problem(memory_, dtype_, {3, 7, 150, 4, 1, 16}, 0, {40, 106}), tolerance_);
}

TEST_P(Attention, LargeScoresStayFinite) {
  const Problem p = make_problem(memory_, dtype_, {1, 1000, 1000, 2, 1, 16}, 0, {}, 200);
  forward(p);
  backward(p);
  for (const Tensor x : {p.out, p.lse, p.dq, p.dk, p.dv}) {
    const std::vector<double> values = to_doubles(x);
    EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); }));
  }
  const std::vector<double> lse = to_doubles(p.lse);
  EXPECT_GT(*std::max_element(lse.begin(), lse.end()), 500);
  expect_close(p.out, Expected(p).out, 10 * tolerance_, "out");  // a score of 1000 has steps of 6e-5
}

TEST_P(Attention, BitsDoNotDependOnTheNumberOfThreads) {
  std::vector<Problem> runs;
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<std::unique_ptr<TestMemory>> memories;
  for (const int threads : {1, 2, 3}) {
    backends.push_back(make_test_backend(GetParam().device, threads));
    memories.push_back(std::make_unique<TestMemory>(*backends.back()));
    runs.push_back(make_problem(*memories.back(), dtype_, {2, 333, 333, 6, 2, 24}, 200, {100, 150}));
    forward(runs.back());
    backward(runs.back());
  }
  for (const Problem& p : {runs[1], runs[2]}) {
    EXPECT_TRUE(same_bits(p.out, runs[0].out) && same_bits(p.lse, runs[0].lse));
    EXPECT_TRUE(same_bits(p.dq, runs[0].dq) && same_bits(p.dk, runs[0].dk) && same_bits(p.dv, runs[0].dv));
  }
}

TEST_P(Attention, BitsDoNotDependOnHowManyThreadsShareAKeyHead) {
  std::vector<std::vector<double>> expected;
  for (const int threads : {1, 7, 16}) {
    const auto backend = make_test_backend(GetParam().device, threads);
    TestMemory memory(*backend);
    const int64_t length = is_slow(GetParam()) ? 400 : 700;
    const Problem p = make_problem(memory, dtype_, {1, length, length, 4, 1, 64}, 0, {150, 200});
    forward(p);
    backward(p);
    const std::vector<std::vector<double>> values = {to_doubles(p.out), to_doubles(p.lse), to_doubles(p.dq), to_doubles(p.dk),
                                                     to_doubles(p.dv)};
    if (expected.empty()) expected = values;
    EXPECT_TRUE(values == expected) << threads;
  }
}

TEST_P(Attention, GradientsMatchDifferences) {
  if (dtype_ != Dtype::f32) GTEST_SKIP() << "differences need f32";
  for (const int64_t window : {0, 9}) {
    Problem p = make_problem(memory_, dtype_, {2, 33, 33, 6, 2, 8}, window, {5, 20});
    const auto run_backward = [&](Tensor dout) {
      p.dout = dout;
      backward(p);
    };
    expect_gradients({{p.q, p.k, p.v}, {p.dq, p.dk, p.dv}, p.out, [&] { forward(p); }, run_backward}, memory_);
  }
}

INSTANTIATE_TEST_SUITE_P(OnEveryDevice, Attention, testing::ValuesIn(every_device()), [](const auto& row) { return row_name(row.param); });

}  // namespace
}  // namespace tessera
