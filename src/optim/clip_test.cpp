#include "optim/clip.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "backend/backend.h"
#include "core/rng.h"
#include "ops/adamw.h"
#include "testing/golden.h"
#include "testing/gradients.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

class ClipTest : public testing::TestWithParam<const char*> {
 protected:
  Tensor blocks(Tensor x) {
    const Tensor sums = memory_.zeros(Dtype::f64, {(x.size() + 63) / 64});
    square_sums(sums, x);
    return sums;
  }
  Tensor parts() { return memory_.zeros(Dtype::i64, {3, 2}); }
  // The square of the norm when the given tensors of each rank are summed on that rank.
  double square(const std::vector<std::vector<Tensor>>& ranks) {
    std::vector<SquareSum> sums;
    double largest = 0;
    for (size_t r = 0; r < ranks.size(); ++r) {
      sums.emplace_back(parts());
      for (Tensor x : ranks[r]) sums[r].add(blocks(x));
      largest = std::max(largest, sums[r].largest());
    }
    const int exponent = SquareSum::exponent_for(largest);
    SquareSum::Total total;
    for (SquareSum& sum : sums) total = SquareSum::sum(total, sum.total(exponent));
    return SquareSum::value(total, exponent);
  }
  Tensor piece(Tensor x, int64_t begin, int64_t end) {
    x.data = x.as<float>() + begin;
    x.shape = {end - begin};
    return x;
  }
  std::unique_ptr<Backend> backend_ = make_test_backend(GetParam(), 2);
  TestMemory memory_{*backend_};
};
// Devices with f32 rows.
std::vector<const char*> f32_devices() {
  std::vector<const char*> out;
  for (const DeviceRow& row : every_device())
    if (row.dtype == Dtype::f32) out.push_back(row.device);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Devices, ClipTest, testing::ValuesIn(f32_devices()), [](const auto& info) { return std::string(info.param); });

TEST_P(ClipTest, AnyCutGivesTheSameBits) {
  const int64_t blocks = 500, n = 64 * blocks - 17;
  std::vector<double> values = to_doubles(memory_.random(Dtype::f32, {n}, 11));
  for (size_t i = 0; i < values.size(); ++i) values[i] *= std::exp2(double(i % 37) - 18);  // block sums of very different size
  const Tensor x = memory_.of(Dtype::f32, {n}, values);
  const double plain = std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
  const double whole = square({{x}});
  EXPECT_NEAR(whole, plain, 1e-12 * plain);

  const Rng rng(5, Purpose::shuffle);
  uint64_t draw = 0;
  for (int round = 0; round < 40; ++round) {
    std::vector<std::vector<Tensor>> ranks(1 + rng.below(draw++, 4));
    for (int64_t begin = 0; begin < blocks;) {
      const int64_t end = std::min<int64_t>(blocks, begin + 1 + int64_t(rng.below(draw++, 100)));
      ranks[rng.below(draw++, ranks.size())].push_back(piece(x, 64 * begin, std::min(n, 64 * end)));
      begin = end;
    }
    EXPECT_EQ(square(ranks), whole) << round;
  }
}

TEST_P(ClipTest, ExtremeSizes) {
  EXPECT_EQ(square({{memory_.zeros(Dtype::f32, {1000})}}), 0);
  EXPECT_EQ(square({{}, {}}), 0);
  for (const double size : {1e-30, 1e-20, 1.0, 1e20, 1e30}) {
    const Tensor x = memory_.of(Dtype::f32, {300}, std::vector<double>(300, size));
    const double one = to_doubles(x)[0];
    EXPECT_NEAR(square({{x}}), 300 * one * one, 1e-12 * 300 * one * one) << size;
  }
  const Tensor large = memory_.of(Dtype::f32, {64}, std::vector<double>(64, 1e30));
  const Tensor small = memory_.of(Dtype::f32, {64}, std::vector<double>(64, 1e-30));
  EXPECT_EQ(square({{large}, {small}}), square({{large}}));
}

TEST_P(ClipTest, NotFinite) {
  for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)}) {
    SquareSum sum(parts());
    sum.add(blocks(memory_.random(Dtype::f32, {640}, 1)));
    EXPECT_TRUE(std::isfinite(sum.largest()));
    sum.add(blocks(memory_.of(Dtype::f32, {3}, {1, bad, 2})));
    EXPECT_EQ(sum.largest(), INFINITY);
  }
}

TEST_P(ClipTest, Golden) {
  NEEDS_SHARED();
  const Json cases = Json::parse(shared_text("golden/quant/optim/clip_grad_norm.json"))["cases"];
  const GoldenFile golden("golden/quant/optim/clip_grad_norm.safetensors");
  for (const Json& row : cases) {
    SCOPED_TRACE(row["name"].get<std::string>());
    std::vector<Tensor> gradients;
    for (const auto& name : row["grads"]) {
      const auto values = golden.doubles(name);
      gradients.push_back(memory_.of(Dtype::f32, {int64_t(values.size())}, values));
    }
    if (!row.contains("total_norm_fp64")) {
      SquareSum sum(parts());
      for (Tensor g : gradients) sum.add(blocks(g));
      EXPECT_EQ(sum.largest(), INFINITY);
      continue;
    }
    const double norm = std::sqrt(square({gradients})), exact = row["total_norm_fp64"];
    EXPECT_NEAR(norm, exact, 1e-12 * exact);
    const double torch_norm = golden.doubles(row["fsdp_total_norm"])[0];
    EXPECT_NEAR(norm, torch_norm, 1e-6 * torch_norm);

    const float max_norm = row["max_norm"], coefficient = clip_coefficient(float(norm), max_norm);
    if (row["dtype"] != "float32" || max_norm == 0) continue;  // bf16: torch rounds the products; 0: we do not clip
    for (size_t i = 0; i < gradients.size(); ++i) {
      const auto clipped = golden.doubles(row["clipped"][i]);
      const auto given = to_doubles(gradients[i]);
      for (size_t k = 0; k < clipped.size(); ++k) ASSERT_NEAR(float(given[k]) * coefficient, clipped[k], 1e-6 * std::abs(clipped[k]));
    }
  }
}

// Sums far below the largest are cut off to whole units, as a shift of their bits; numbers too small for an exponent field as well.
TEST_P(ClipTest, SmallSumsAreCutOff) {
  const double largest = 0x1.8p0;  // a unit is 2^-80
  const auto total = [&](double sum) {
    SquareSum s(parts());
    s.add(memory_.of(Dtype::f64, {2}, {largest, sum}));
    const SquareSum::Total t = s.total(SquareSum::exponent_for(largest));
    EXPECT_EQ(t.high, 0x18000) << sum;
    return t.low;
  };
  EXPECT_EQ(total(0), 0u);
  EXPECT_EQ(total(0x1p-80), 1u);
  EXPECT_EQ(total(0x1.fffffffffffffp-80), 1u);
  EXPECT_EQ(total(0x1.fffffffffffffp-81), 0u);
  EXPECT_EQ(total(0x1.8p-79), 3u);
  EXPECT_EQ(total(0x1.0000000000001p-28), (uint64_t(1) << 52) + 1);
  EXPECT_EQ(total(0x1.0000000000001p-30), uint64_t(1) << 50);
  EXPECT_EQ(total(0x1p-1074), 0u);
  SquareSum tiny(parts());
  tiny.add(memory_.of(Dtype::f64, {2}, {0x1p-1074, 0x1p-1073}));
  EXPECT_EQ(SquareSum::value(tiny.total(SquareSum::exponent_for(0x1p-1073)), SquareSum::exponent_for(0x1p-1073)), 3 * 0x1p-1074);
}

// Sums of 2^40 units each: carries between the words, on every thread and part.
TEST_P(ClipTest, CarriesAndPartsLoseNothing) {
  const int64_t n = 70000;
  const Tensor sums = memory_.of(Dtype::f64, {n}, std::vector<double>(size_t(n), 0x1.fffffffffffffp79));
  for (const int64_t rows : {1, 5, 600}) {
    SquareSum s(memory_.zeros(Dtype::i64, {rows, 2}));
    s.add(sums);
    s.add(sums);
    const SquareSum::Total all = s.total(0);
    const auto wanted = static_cast<unsigned __int128>((uint64_t(1) << 53) - 1) << 27;
    EXPECT_EQ(uint64_t(all.high), uint64_t(wanted * (2 * uint64_t(n)) >> 64)) << rows;
    EXPECT_EQ(all.low, uint64_t(wanted * (2 * uint64_t(n)))) << rows;
    EXPECT_EQ(s.largest(), 0x1.fffffffffffffp79);
  }
}

TEST(ClipCoefficient, Values) {
  EXPECT_EQ(clip_coefficient(0.5f, 1), 1);
  EXPECT_EQ(clip_coefficient(0, 1), 1);
  EXPECT_EQ(clip_coefficient(100, 0), 1);
  EXPECT_EQ(clip_coefficient(100, -1), 1);
  EXPECT_FLOAT_EQ(clip_coefficient(4, 1), 0.25f);
  EXPECT_TRUE(std::isnan(clip_coefficient(NAN, 1)));
}

}  // namespace
}  // namespace tessera
