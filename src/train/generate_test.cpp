#include "train/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "core/rng.h"

namespace tessera {
namespace {

const std::vector<float> logits{1, 3, 2, 3, -1};

TEST(Sample, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(sample(logits, {}, 0), 1);
  for (size_t first = 0; first < 40; ++first)
    for (size_t second = first; second < 40; second += 7) {
      std::vector<float> x(40, -2);
      x[first] = x[second] = -1;
      EXPECT_EQ(sample(x, {}, 0), int32_t(first));
    }
}

// All ids in order, their weights added from the likeliest on.
int32_t sample_by_sorting(const std::vector<float>& x, const SamplingOptions& o, uint64_t index) {
  std::vector<int32_t> ids(x.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return x[size_t(a)] > x[size_t(b)]; });
  if (o.top_k > 0) ids.resize(std::min(ids.size(), size_t(o.top_k)));
  std::vector<double> p;
  for (const int32_t id : ids) p.push_back(std::exp((double(x[size_t(id)]) - x[size_t(ids[0])]) / o.temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  double kept = 0;
  size_t n = 0;
  while (n < p.size() && (n == 0 || kept < o.top_p * sum)) kept += p[n++];
  double draw = Rng(o.seed, Purpose::sample).uniform(index) * kept;
  for (size_t i = 0; i < n; ++i)
    if ((draw -= p[i]) < 0) return ids[i];
  return ids[n - 1];
}

TEST(Sample, EqualsADrawFromAllIdsInOrder) {
  std::vector<float> x(3000);
  for (const float spread : {0.1f, 3.0f, 30.0f}) {
    Rng(1, Purpose::init).fill_normal(x.data(), 0, x.size());
    for (float& v : x) v = std::round(v * spread * 64) / 64;  // with equal ones
    for (const double temperature : {0.7, 2.0})
      for (const int64_t top_k : {0, 50})
        for (const double top_p : {1.0, 0.9}) {
          const SamplingOptions o{temperature, top_k, top_p, 7};
          for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(sample(x, o, i), sample_by_sorting(x, o, i)) << spread << " " << i;
        }
  }
}

std::map<int32_t, double> shares(const SamplingOptions& o) {
  std::map<int32_t, double> out;
  const int n = 20000;
  for (uint64_t i = 0; i < n; ++i) out[sample(logits, o, i)] += 1.0 / n;
  return out;
}

TEST(Sample, FollowsTheSoftmaxAtTheTemperature) {
  for (const double temperature : {1.0, 0.5, 2.0}) {
    SamplingOptions o;
    o.temperature = temperature;
    double z = 0;
    for (const float l : logits) z += std::exp(l / temperature);
    for (const auto& [id, share] : shares(o)) EXPECT_NEAR(share, std::exp(logits[size_t(id)] / temperature) / z, 0.015) << id;
  }
}

TEST(Sample, TopKAndTopPKeepTheLikeliest) {
  SamplingOptions o;
  o.temperature = 1;
  o.top_k = 2;
  EXPECT_EQ(shares(o).size(), 2u);
  EXPECT_NEAR(shares(o).at(3), 0.5, 0.02);
  o.top_k = 0, o.top_p = 0.5;  // ids 1 and 3 have 0.41 each: two are needed
  EXPECT_EQ(shares(o).size(), 2u);
  o.top_p = 0.3;
  EXPECT_EQ(shares(o).size(), 1u);
}

TEST(Sample, TheSeedDecides) {
  SamplingOptions a, b;
  a.temperature = b.temperature = 1;
  b.seed = 43;
  std::vector<int32_t> first, again, other;
  for (uint64_t i = 0; i < 50; ++i)
    first.push_back(sample(logits, a, i)), again.push_back(sample(logits, a, i)), other.push_back(sample(logits, b, i));
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
}

}  // namespace
}  // namespace tessera
