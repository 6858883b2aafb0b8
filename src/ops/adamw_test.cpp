// AdamW against torch.optim (absolute tolerance 5e-7 on parameters and states), and sums of squares.
#include "ops/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "backend/backend.h"
#include "testing/golden.h"
#include "testing/gradients.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

class AdamwTest : public testing::Test {
 protected:
  Tensor place(const std::vector<float>& values) {
    const Tensor t = memory_.zeros(Dtype::f32, {int64_t(values.size())});
    std::memcpy(t.data, values.data(), t.bytes());
    return t;
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu", 2);
  TestMemory memory_{*backend_};
};

double largest_difference(Tensor a, const std::vector<float>& b) {
  double largest = a.size() == int64_t(b.size()) ? 0 : INFINITY;
  for (int64_t i = 0; i < a.size() && largest < INFINITY; ++i)
    largest = std::max(largest, std::abs(double(a.as<float>()[i]) - b[size_t(i)]));
  return largest;
}

AdamwStep step_of(const Json& options) {
  AdamwStep s;
  s.lr = options["lr"];
  s.weight_decay = options.value("weight_decay", 0.01f);
  s.eps = options.value("eps", 1e-8f);
  if (options.contains("betas")) s.beta1 = options["betas"][0], s.beta2 = options["betas"][1];
  return s;
}

TEST_F(AdamwTest, TorchGolden) {
  NEEDS_SHARED();
  const Json cases = Json::parse(shared_text("golden/quant/optim/torch_optimizers.json"))["cases"];
  const GoldenFile golden("golden/quant/optim/torch_optimizers.safetensors");
  int checked = 0;
  for (const Json& row : cases) {
    if (row["optimizer"] != "AdamW" || row["dtype"] != "float32") continue;
    for (size_t index = 0; index < row["p0"].size(); ++index) {
      const Tensor p = place(golden.floats(row["p0"][index])), m = place(std::vector<float>(p.size())),
                   v = place(std::vector<float>(p.size()));
      const Tensor grads = place(golden.floats(row["grads"][index]));
      AdamwStep step = step_of(row["options"]);
      for (step.step = 1; step.step <= 10; ++step.step) {
        Tensor g = p;
        g.data = grads.as<float>() + (step.step - 1) * p.size();
        adamw(p, m, v, g, Tensor{}, step);
        for (const char* implementation : {"forloop", "fused"}) {
          const Json& recorded = row["implementations"][implementation];
          const std::string at = std::to_string(step.step);
          if (!recorded.contains(at)) continue;
          SCOPED_TRACE(row["name"].get<std::string>() + " " + implementation + " step " + at);
          const Json& expected = recorded[at][index];
          EXPECT_LE(largest_difference(p, golden.floats(expected["p"])), 5e-7);
          EXPECT_LE(largest_difference(m, golden.floats(expected["exp_avg"])), 5e-7);
          EXPECT_LE(largest_difference(v, golden.floats(expected["exp_avg_sq"])), 5e-7);
          ++checked;
        }
      }
    }
  }
  EXPECT_EQ(checked, 4 * 2 * 3 * 2);  // cases, parameters, steps, implementations
}

TEST_F(AdamwTest, GradientScaleIsAFactor) {
  const int64_t n = 1001;
  const Tensor gradient = memory_.random(Dtype::f32, {n}, 1), half = memory_.zeros(Dtype::f32, {n});
  for (int64_t i = 0; i < n; ++i) half.as<float>()[i] = gradient.as<float>()[i] / 2;
  AdamwStep step;
  step.lr = 0.01f;
  const Tensor a = memory_.random(Dtype::f32, {n}, 2), b = memory_.random(Dtype::f32, {n}, 2);
  adamw(b, memory_.zeros(Dtype::f32, {n}), memory_.zeros(Dtype::f32, {n}), half, Tensor{}, step);
  step.gradient_scale = 0.5f;
  adamw(a, memory_.zeros(Dtype::f32, {n}), memory_.zeros(Dtype::f32, {n}), gradient, Tensor{}, step);
  EXPECT_EQ(to_doubles(a), to_doubles(b));
}

// The same elements give the same bits wherever they lie: alone or inside a longer array cut over threads.
TEST_F(AdamwTest, PlaceDoesNotChangeBits) {
  const int64_t n = 40000, from = 12345, count = 777;
  const auto run = [&](int64_t begin, int64_t end) {
    const auto part = [&](uint64_t seed) { return memory_.random(Dtype::f32, {n}, seed).rows_from(0, 1).reshaped({n}); };
    Tensor p = part(1), m = part(2), v = part(3), g = part(4);
    for (int64_t i = 0; i < n; ++i) v.as<float>()[i] = std::abs(v.as<float>()[i]);
    for (Tensor* t : {&p, &m, &v, &g}) t->data = t->as<float>() + begin, t->shape = {end - begin};
    AdamwStep step;
    step.lr = 0.1f;
    step.step = 3;
    adamw(p, m, v, g, Tensor{}, step);
    return std::vector<float>(p.as<float>(), p.as<float>() + p.size());
  };
  const auto whole = run(0, n), piece = run(from, from + count);
  EXPECT_EQ(piece, std::vector<float>(whole.begin() + from, whole.begin() + from + count));
}

// The copy changes nothing else, and is what converting the new values gives.
TEST_F(AdamwTest, CopyIsTheNewValuesRounded) {
  for (const int64_t n : {1, 16, 1000, 100003}) {
    const auto run = [&](Tensor copy) {
      const Tensor p = memory_.random(Dtype::f32, {n}, 1), m = memory_.random(Dtype::f32, {n}, 2), v = memory_.zeros(Dtype::f32, {n});
      AdamwStep step;
      step.lr = 0.1f;
      adamw(p, m, v, memory_.random(Dtype::f32, {n}, 3), copy, step);
      return p;
    };
    const Tensor copy = memory_.zeros(Dtype::bf16, {n}), with = run(copy), without = run({});
    EXPECT_EQ(to_doubles(with), to_doubles(without));
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(copy.as<Bf16>()[i].bits, Bf16(with.as<float>()[i]).bits) << i << " of " << n;
  }
}

TEST_F(AdamwTest, SquareSums) {
  for (const int64_t n : {1, 63, 64, 65, 1000, 64 * 1000}) {
    const Tensor x = memory_.random(Dtype::f32, {n}, uint64_t(n)), sums = memory_.zeros(Dtype::f64, {(n + 63) / 64});
    square_sums(sums, x);
    for (int64_t b = 0; b < sums.size(); ++b) {
      double expected = 0;
      for (int64_t i = b * 64; i < std::min(n, b * 64 + 64); ++i) expected += double(x.as<float>()[i]) * x.as<float>()[i];
      ASSERT_NEAR(sums.as<double>()[b], expected, 1e-14 * expected) << n << " " << b;
    }
  }
}

}  // namespace
}  // namespace tessera
