#include "train/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace tessera {
namespace {

const std::vector<float> logits{1, 3, 2, 3, -1};

TEST(Sample, GreedyTakesTheFirstOfTheLargest) { EXPECT_EQ(sample(logits, {}, 0), 1); }

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
