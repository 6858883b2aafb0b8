// Attention of one query per head against its definition, on every instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/backend.h"
#include "backend/cpu/targets.h"
#include "hwy/highway.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct OneQuery : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, OneQuery, ::testing::ValuesIn(every_device()), case_name);

struct Sizes {
  int64_t batch, keys, heads, key_heads, width;
};

struct Results {
  std::vector<double> out, lse;
};

Results definition(const Sizes& s, Tensor q, Tensor k, Tensor v, const std::vector<double>& starts, AttentionShape shape) {
  const std::vector<double> x = to_doubles(q), keys = to_doubles(k), values = to_doubles(v);
  Results r;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h) {
      const auto row = [&](int64_t j) { return size_t(((b * s.keys + j) * s.key_heads + h / (s.heads / s.key_heads)) * s.width); };
      const int64_t first = std::max(int64_t(starts[size_t(b)]), shape.window ? s.keys - shape.window : 0);
      double sum = 0;
      std::vector<double> out(size_t(s.width));
      for (int64_t j = first; j < s.keys; ++j) {
        double score = 0;
        for (size_t i = 0; i < out.size(); ++i) score += x[size_t((b * s.heads + h) * s.width) + i] * keys[row(j) + i];
        const double p = std::exp(score * double(shape.scale));
        sum += p;
        for (size_t i = 0; i < out.size(); ++i) out[i] += p * values[row(j) + i];
      }
      for (const double value : out) r.out.push_back(value / sum);
      r.lse.push_back(std::log(sum));
    }
  return r;
}

void expect_definition(Backend& backend, Dtype dtype, double tolerance, const Sizes& s, const std::vector<double>& starts, int64_t window) {
  TestMemory memory(backend);
  const AttentionShape shape{0.3f, window};
  const Tensor q = memory.random(dtype, {s.batch, 1, s.heads, s.width}, 1), out = memory.zeros(dtype, q.shape);
  const Tensor k = memory.random(dtype, {s.batch, s.keys, s.key_heads, s.width}, 2), v = memory.random(dtype, k.shape, 3);
  const Tensor lse = memory.zeros(Dtype::f32, {s.batch, s.heads, 1});
  backend.attention(out, lse, q, k, v, memory.of(Dtype::i32, {s.batch, 1}, starts), shape);
  const Results want = definition(s, q, k, v, starts, shape);
  expect_close(out, want.out, tolerance, "out");
  expect_close(lse, want.lse, tolerance, "lse");
}

TEST_P(OneQuery, MatchesTheDefinition) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    for (const int64_t width : {16, 24, 48, 64, 80, 128, 256})
      for (const int64_t keys : {1, 15, 16, 17, 33, 200})
        for (const int64_t group : {1, 2, 3, 4, 7})
          expect_definition(*backend, dtype, tolerance, {2, keys, 2 * group, 2, width}, {0, double(keys / 2)}, keys == 200 ? 70 : 0);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

TEST_P(OneQuery, SameBitsOnAnyThreads) {
  expect_same_on_any_threads(GetParam().device, [&](TestMemory& own) {
    const Tensor q = own.random(dtype, {2, 1, 15, 64}, 1), out = own.zeros(dtype, q.shape), lse = own.zeros(Dtype::f32, {2, 15, 1});
    const Tensor k = own.random(dtype, {2, 900, 5, 64}, 2), v = own.random(dtype, k.shape, 3);
    own.backend().attention(out, lse, q, k, v, own.zeros(Dtype::i32, {2, 1}), {0.125f, 0});
    std::vector<double> all = to_doubles(out);
    for (const double value : to_doubles(lse)) all.push_back(value);
    return all;
  });
}

TEST_P(OneQuery, LargeScoresStayFinite) {
  const Tensor q = memory.random(dtype, {1, 1, 4, 64}, 1, 100), out = memory.zeros(dtype, q.shape),
               lse = memory.zeros(Dtype::f32, {1, 4, 1});
  const Tensor k = memory.random(dtype, {1, 50, 1, 64}, 2, 100), v = memory.random(dtype, k.shape, 3);
  backend->attention(out, lse, q, k, v, memory.zeros(Dtype::i32, {1, 1}), {1, 0});
  for (const double value : to_doubles(out)) EXPECT_TRUE(std::isfinite(value));
  for (const double value : to_doubles(lse)) EXPECT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace tessera
