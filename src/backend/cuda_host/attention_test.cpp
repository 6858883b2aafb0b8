// Attention of the CUDA backend in bf16 and f16: head sizes on the tensor cores and beside them, many shapes, against the definition in
// double. The tests of every device are in ops/attention_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "testing/gradients.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

struct Sizes {
  int64_t batch, queries, keys, heads, key_heads, width, window;
};

struct Tensors {
  Tensor q, k, v, dout, starts, out, lse, dq, dk, dv;
};

struct Expected {
  std::vector<double> out, lse, dq, dk, dv;
};

double dot(const double* a, const double* b, int64_t n) { return std::inner_product(a, a + n, b, 0.0); }
void add(double* to, const double* x, double factor, int64_t n) {
  for (int64_t d = 0; d < n; ++d) to[d] += factor * x[d];
}

// One query: its visible keys, and what it adds to the gradients.
void add_query(Expected& e, const Sizes& s, const std::vector<double> (&x)[4], int64_t b, int64_t i, int64_t h, int64_t start) {
  const auto& [q, k, v, dout] = x;
  const int64_t n = s.width, at = ((b * s.queries + i) * s.heads + h) * n, last = s.keys - s.queries + i;
  const int64_t first = s.window ? std::max(start, last - s.window + 1) : start;
  const double scale = 1 / std::sqrt(double(n));
  const auto key = [&](int64_t j) { return ((b * s.keys + j) * s.key_heads + h / (s.heads / s.key_heads)) * n; };
  std::vector<double> w(size_t(last + 1));
  double most = -INFINITY, sum = 0;
  for (int64_t j = first; j <= last; ++j) most = std::max(most, w[size_t(j)] = scale * dot(&q[size_t(at)], &k[size_t(key(j))], n));
  for (int64_t j = first; j <= last; ++j) sum += w[size_t(j)] = std::exp(w[size_t(j)] - most);
  e.lse[size_t((b * s.heads + h) * s.queries + i)] = most + std::log(sum);
  for (int64_t j = first; j <= last; ++j) add(&e.out[size_t(at)], &v[size_t(key(j))], w[size_t(j)] /= sum, n);
  const double delta = dot(&dout[size_t(at)], &e.out[size_t(at)], n);
  for (int64_t j = first; j <= last; ++j) {
    const double ds = scale * w[size_t(j)] * (dot(&dout[size_t(at)], &v[size_t(key(j))], n) - delta);
    add(&e.dv[size_t(key(j))], &dout[size_t(at)], w[size_t(j)], n);
    add(&e.dq[size_t(at)], &k[size_t(key(j))], ds, n);
    add(&e.dk[size_t(key(j))], &q[size_t(at)], ds, n);
  }
}

class HostAttention : public testing::TestWithParam<Dtype> {
 protected:
  // Documents begin at the given tokens.
  Tensors make(const Sizes& s, const std::vector<int64_t>& documents, float q_scale = 1) {
    const Shape query = {s.batch, s.queries, s.heads, s.width}, key = {s.batch, s.keys, s.key_heads, s.width};
    const Dtype dtype = GetParam();
    starts_.assign(size_t(s.batch * s.queries), 0);
    for (int64_t at = 0; at < int64_t(starts_.size()); ++at)
      for (const int64_t begin : documents)
        if (begin <= s.keys - s.queries + at % s.queries) starts_[size_t(at)] = double(begin);
    return {memory_.random(dtype, query, 1, q_scale),
            memory_.random(dtype, key, 2),
            memory_.random(dtype, key, 3),
            memory_.random(dtype, query, 4),
            memory_.of(Dtype::i32, {s.batch, s.queries}, starts_),
            memory_.zeros(dtype, query),
            memory_.zeros(Dtype::f32, {s.batch, s.heads, s.queries}),
            memory_.zeros(dtype, query),
            memory_.zeros(dtype, key),
            memory_.zeros(dtype, key)};
  }

  Expected expected(const Sizes& s, const Tensors& t) {
    const std::vector<double> x[4] = {to_doubles(t.q), to_doubles(t.k), to_doubles(t.v), to_doubles(t.dout)};
    Expected e;
    e.out.resize(x[0].size());
    e.dq.resize(x[0].size());
    e.dk.resize(x[1].size());
    e.dv.resize(x[1].size());
    e.lse.resize(size_t(s.batch * s.heads * s.queries));
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t i = 0; i < s.queries; ++i)
        for (int64_t h = 0; h < s.heads; ++h) add_query(e, s, x, b, i, h, int64_t(starts_[size_t(b * s.queries + i)]));
    return e;
  }

  void check(const Sizes& s, const std::vector<int64_t>& documents = {}, float q_scale = 1) {
    SCOPED_TRACE(testing::Message() << "B " << s.batch << " Tq " << s.queries << " Tk " << s.keys << " H " << s.heads << " K "
                                    << s.key_heads << " D " << s.width << " window " << s.window);
    const Tensors t = make(s, documents, q_scale);
    const Expected e = expected(s, t);
    const AttentionShape shape{1 / std::sqrt(float(s.width)), s.window};
    backend_->attention(t.out, t.lse, t.q, t.k, t.v, t.starts, shape);
    expect_close(t.out, e.out, tolerance(), "out");
    expect_close(t.lse, e.lse, 1e-5, "lse");
    if (s.queries != s.keys) return;
    backend_->attention_backward(t.dq, t.dk, t.dv, t.dout, t.out, t.lse, t.q, t.k, t.v, t.starts, shape);
    expect_close(t.dv, e.dv, tolerance(), "dv");
    if (s.keys == 1) return;  // their gradients are 0
    expect_close(t.dq, e.dq, tolerance(), "dq");
    expect_close(t.dk, e.dk, tolerance(), "dk");
  }

  double tolerance() const { return GetParam() == Dtype::f16 ? 2e-3 : 1e-2; }

  std::unique_ptr<Backend> backend_ = make_test_backend("cuda_host", 1);
  TestMemory memory_{*backend_};
  std::vector<double> starts_;
};

TEST_P(HostAttention, MatchesTheDefinitionForEveryHeadSize) {
  for (const int64_t width : {64, 80, 96, 128, 256}) check({1, 130, 130, 1, 1, width, 0});
}

TEST_P(HostAttention, MatchesTheDefinitionForAnyLength) {
  for (const int64_t length : {1, 17, 31, 64, 129}) check({2, length, length, 1, 1, 64, 0});
}

TEST_P(HostAttention, SharesKeysAmongTheHeadsOfAGroup) {
  check({1, 40, 40, 4, 1, 128, 0});
  check({2, 33, 33, 4, 2, 96, 0});
}

TEST_P(HostAttention, SeesOnlyTheWindow) {
  for (const int64_t window : {2, 33, 100}) check({1, 150, 150, 1, 1, 64, window});
}

TEST_P(HostAttention, SeesOnlyItsDocument) {
  check({1, 200, 200, 2, 1, 64, 0}, {0, 1, 70, 128});
  check({1, 200, 200, 1, 1, 80, 40}, {0, 30, 128, 199});
}

TEST_P(HostAttention, LastQueriesSeeAllKeysBeforeThem) {
  for (const int64_t queries : {1, 3, 8, 9, 40}) {
    check({2, queries, 300, 4, 1, 64, 0});
    check({1, queries, 300, 2, 2, 80, 70});
    check({1, queries, 300, 6, 2, 128, 0}, {0, 100, 298});
  }
  check({1, 1, 50, 2, 1, 256, 0});
  check({1, 7, 130, 5, 1, 96, 0});
}

TEST_P(HostAttention, LargeScoresMoveTheReference) {
  check({1, 100, 300, 1, 1, 64, 0}, {}, 20);
  check({1, 40, 300, 1, 1, 256, 0}, {}, 20);
  check({1, 2, 300, 2, 1, 128, 0}, {}, 20);
}

// 128 tokens are whole tiles of queries and of keys: what other documents hold is not even multiplied by zero.
TEST_P(HostAttention, TilesOfOtherDocumentsAreNotTouched) {
  for (const int64_t poisoned : {0, 128, 256}) {
    const Sizes s = {1, 384, 384, 2, 1, 64, 0};
    const Tensors t = make(s, {0, 128, 256});
    for (const Tensor& x : {t.q, t.k, t.v, t.dout}) {
      const int64_t heads = x.shape.dim[2];
      const Tensor rows = x.rows_from(poisoned * heads, 128 * heads);
      const std::vector<uint16_t> nan(size_t(rows.size()), 0x7fff);  // in either type
      backend_->copy(rows.data, nan.data(), rows.bytes());
    }
    backend_->attention(t.out, t.lse, t.q, t.k, t.v, t.starts, {0.125f, 0});
    backend_->attention_backward(t.dq, t.dk, t.dv, t.dout, t.out, t.lse, t.q, t.k, t.v, t.starts, {0.125f, 0});
    for (const Tensor& x : {t.out, t.dq, t.dk, t.dv}) {
      const std::vector<double> values = to_doubles(x);
      const size_t per_token = values.size() / 384;
      for (size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(std::isnan(values[i]), int64_t(i / per_token) / 128 == poisoned / 128) << i / per_token;
    }
  }
}

TEST_P(HostAttention, OtherHeadSizesNeedNoTensorCores) {
  check({1, 50, 50, 2, 1, 20, 0}, {0, 13});
  check({1, 4, 70, 2, 1, 112, 30});
}

TEST_P(HostAttention, SameBitsInAnyOrderOfThreads) {
  const Sizes s = {1, 140, 140, 2, 1, 64, 0};
  std::vector<std::vector<double>> first;
  for (const uint64_t seed : {1, 2}) {
    const auto backend = make_test_backend("cuda_host", 1, seed);
    TestMemory memory(*backend);
    const auto again = [&](Tensor x) { return memory.of(x.dtype, x.shape, to_doubles(x)); };
    Tensors t = make(s, {0, 50});
    for (Tensor* x : {&t.q, &t.k, &t.v, &t.dout, &t.starts, &t.out, &t.lse, &t.dq, &t.dk, &t.dv}) *x = again(*x);
    const AttentionShape shape{0.125f, 0};
    backend->attention(t.out, t.lse, t.q, t.k, t.v, t.starts, shape);
    backend->attention_backward(t.dq, t.dk, t.dv, t.dout, t.out, t.lse, t.q, t.k, t.v, t.starts, shape);
    std::vector<std::vector<double>> values;
    for (const Tensor& x : {t.out, t.lse, t.dq, t.dk, t.dv}) values.push_back(to_doubles(x));
    if (first.empty()) first = values;
    EXPECT_EQ(values, first);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, HostAttention, testing::Values(Dtype::bf16, Dtype::f16),
                         [](const auto& type) { return type.param == Dtype::f16 ? "f16" : "bf16"; });

}  // namespace
}  // namespace tessera
