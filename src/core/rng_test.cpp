#include "core/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/normal.h"

namespace tessera {
namespace {

// Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, 0), (Philox4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffffffffffff),
            (Philox4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822),
            (Philox4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, PurposesNamesAndStreamsAreApart) {
  std::set<uint64_t> keys;
  for (const uint64_t seed : {1, 2})
    for (const Purpose purpose : {Purpose::init, Purpose::dropout, Purpose::shuffle, Purpose::sample})
      for (const char* name : {"", "q_proj", "k_proj"})
        for (const uint64_t stream : {uint64_t(0), uint64_t(1), uint64_t(1) << 32}) keys.insert(Rng(seed, purpose, name, stream).key());
  EXPECT_EQ(keys.size(), 2u * 4 * 3 * 3);
}

TEST(Rng, UniformAndNormalHaveTheirMoments) {
  const Rng rng(7, Purpose::init, "moments");
  const int n = 100000;
  double sum = 0, squares = 0, normal_sum = 0, normal_squares = 0;
  for (int i = 0; i < n; ++i) {
    const double u = rng.uniform(uint64_t(i)), z = rng.normal(uint64_t(i));
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u, squares += u * u, normal_sum += z, normal_squares += z * z;
  }
  EXPECT_NEAR(sum / n, 0.5, 0.005);
  EXPECT_NEAR(squares / n, 1.0 / 3, 0.005);
  EXPECT_NEAR(normal_sum / n, 0, 0.015);
  EXPECT_NEAR(normal_squares / n, 1, 0.02);
}

// A range is the same whether it is drawn whole, in parts, or one by one.
TEST(Rng, RangesOfNormals) {
  const Rng rng(3, Purpose::init, "range");
  std::vector<float> whole(1003), parts(1003);
  rng.fill_normal(whole.data(), 5, 1003);
  rng.fill_normal(parts.data(), 5, 10);
  rng.fill_normal(parts.data() + 10, 15, 993);
  EXPECT_EQ(whole, parts);
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_EQ(whole[i], rng.normal(5 + i));
}

// The definition in double, from the words themselves. The tail reaches 5.77: u is at least 2^-24.
TEST(Rng, NormalsAreBoxMullerPairs) {
  const Rng rng(11, Purpose::init, "pairs");
  for (uint32_t i = 0; i < 100000; i += 2) {
    const Philox4 w = philox({i / 4, 0, 1, 0}, rng.key());
    const double u = (double(w[i % 4] >> 8) + 1) * 0x1p-24, angle = 2 * M_PI * double(w[i % 4 + 1] >> 8) * 0x1p-24;
    const double radius = std::sqrt(-2 * std::log(u));
    ASSERT_NEAR(rng.normal(i), radius * std::cos(angle), 4e-7 * radius) << i;
    ASSERT_NEAR(rng.normal(i + 1), radius * std::sin(angle), 4e-7 * radius) << i;
  }
}

TEST(Rng, LogAndTurnAtTheEnds) {
  EXPECT_EQ(log_of(1), 0);
  for (const float x : {0x1p-24f, 0x1.8p-24f, 0.5f, 0.70710677f, 0.70710683f, 1 - 0x1p-24f, 1.4142135f, 1.4142137f})
    EXPECT_NEAR(log_of(x), std::log(double(x)), 2.5e-7 * std::abs(std::log(double(x)))) << x;
  for (uint32_t k = 0; k < 1u << 24; k += 4093) {
    EXPECT_NEAR(turn_of(k).cosine, std::cos(2 * M_PI * k * 0x1p-24), 2e-7) << k;
    EXPECT_NEAR(turn_of(k).sine, std::sin(2 * M_PI * k * 0x1p-24), 2e-7) << k;
  }
  EXPECT_EQ(turn_of(1u << 22).sine, 1);
}

TEST(Rng, RangesOfUniforms) {
  const Rng rng(3, Purpose::init, "range");
  std::vector<float> values(1003);
  rng.fill_uniform(values.data(), 6, values.size());
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], rng.uniform(6 + i)) << i;
}

TEST(Rng, BelowStaysBelowAndReachesAll) {
  const Rng rng(3, Purpose::sample);
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 500; ++i) seen.insert(rng.below(i, 7));
  EXPECT_EQ(seen.size(), 7u);
  EXPECT_EQ(*seen.rbegin(), 6u);
}

TEST(Shuffled, IsAPermutationThatDependsOnSeedAndEpoch) {
  const auto a = shuffled(1000, 42, 0), b = shuffled(1000, 42, 1), c = shuffled(1000, 43, 0);
  EXPECT_EQ(a, shuffled(1000, 42, 0));
  EXPECT_NE(a, b);
  EXPECT_NE(a, c);
  auto sorted = a;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(sorted[size_t(i)], i);
  EXPECT_TRUE(shuffled(0, 1, 1).empty());
}

}  // namespace
}  // namespace tessera
