// AdamW against torch.optim (absolute tolerance 5e-7 on parameters and states), and sums of squares.
#include "ops/adamw.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "testing/golden.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

class AdamwTest : public OnEachDevice {
 protected:
  Tensor place(const std::vector<float>& values) {
    const Tensor t = memory.zeros(Dtype::f32, {int64_t(values.size())});
    backend->copy(t.data, values.data(), t.bytes());
    return t;
  }
  Tensor random(int64_t n, uint64_t seed) { return memory.random(Dtype::f32, {n}, seed); }
  Tensor zeros(int64_t n) { return memory.zeros(Dtype::f32, {n}); }
};
INSTANTIATE_TEST_SUITE_P(Devices, AdamwTest, ::testing::ValuesIn(test_devices()), device_name);

double largest_difference(Tensor a, const std::vector<float>& b) {
  double largest = a.size() == int64_t(b.size()) ? 0 : INFINITY;
  const std::vector<double> values = to_doubles(a);
  for (size_t i = 0; i < values.size() && largest < INFINITY; ++i) largest = std::max(largest, std::abs(values[i] - double(b[i])));
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

TEST_P(AdamwTest, TorchGolden) {
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

TEST_P(AdamwTest, GradientScaleIsAFactor) {
  const int64_t n = 1001;
  const Tensor gradient = random(n, 1);
  std::vector<double> halves = to_doubles(gradient);
  for (double& v : halves) v /= 2;
  const Tensor half = memory.of(Dtype::f32, {n}, halves);
  AdamwStep step;
  step.lr = 0.01f;
  const Tensor a = random(n, 2), b = random(n, 2);
  adamw(b, zeros(n), zeros(n), half, Tensor{}, step);
  step.gradient_scale = 0.5f;
  adamw(a, zeros(n), zeros(n), gradient, Tensor{}, step);
  EXPECT_EQ(to_doubles(a), to_doubles(b));
}

// The same elements give the same bits wherever they lie: alone or inside a longer array cut over threads.
TEST_P(AdamwTest, PlaceDoesNotChangeBits) {
  const int64_t n = 40000, from = 12345, count = 777;
  const auto run = [&](int64_t begin, int64_t end) {
    Tensor p = random(n, 1), m = random(n, 2), v = random(n, 3), g = random(n, 4);
    std::vector<double> squares = to_doubles(v);
    for (double& x : squares) x = std::abs(x);
    v = memory.of(Dtype::f32, {n}, squares);
    for (Tensor* t : {&p, &m, &v, &g}) t->data = t->as<float>() + begin, t->shape = {end - begin};
    AdamwStep step;
    step.lr = 0.1f;
    step.step = 3;
    adamw(p, m, v, g, Tensor{}, step);
    return to_doubles(p);
  };
  const auto whole = run(0, n), piece = run(from, from + count);
  EXPECT_EQ(piece, std::vector<double>(whole.begin() + from, whole.begin() + from + count));
}

// The copy changes nothing else, and is what converting the new values gives.
TEST_P(AdamwTest, CopyIsTheNewValuesRounded) {
  for (const int64_t n : {1, 16, 1000, 100003}) {
    const auto run = [&](Tensor copy) {
      const Tensor p = random(n, 1), m = random(n, 2), v = zeros(n);
      AdamwStep step;
      step.lr = 0.1f;
      adamw(p, m, v, random(n, 3), copy, step);
      return p;
    };
    const Tensor copy = memory.zeros(Dtype::bf16, {n}), with = run(copy), without = run({});
    EXPECT_EQ(to_doubles(with), to_doubles(without));
    const std::vector<double> values = to_doubles(with), copies = to_doubles(copy);
    for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(copies[i], double(float(Bf16(float(values[i]))))) << i << " of " << n;
  }
}

TEST_P(AdamwTest, SquareSums) {
  for (const int64_t n : {1, 63, 64, 65, 1000, 64 * 1000}) {
    const Tensor x = random(n, uint64_t(n)), sums = memory.zeros(Dtype::f64, {(n + 63) / 64});
    square_sums(sums, x);
    const std::vector<double> values = to_doubles(x), got = to_doubles(sums);
    for (size_t b = 0; b < got.size(); ++b) {
      double expected = 0;
      for (size_t i = b * 64; i < std::min(values.size(), b * 64 + 64); ++i) expected += values[i] * values[i];
      ASSERT_NEAR(got[b], expected, 1e-14 * expected) << n << " " << b;
    }
  }
}

// Checkpoints go from one device to another: the optimizer and the norm have the same bits on each.
TEST_P(AdamwTest, SameBitsOnEveryDevice) {
  const auto results = [](const char* device) {
    const std::unique_ptr<Backend> backend = make_test_backend(device, 2);
    TestMemory memory(*backend);
    std::vector<double> all;
    for (const int64_t n : {1, 67, 5003}) {
      const Tensor p = memory.random(Dtype::f32, {n}, 1), m = memory.zeros(Dtype::f32, {n}), v = memory.zeros(Dtype::f32, {n});
      const Tensor copy = memory.zeros(Dtype::bf16, {n}), sums = memory.zeros(Dtype::f64, {(n + 63) / 64});
      AdamwStep step;
      step.lr = 0.01, step.weight_decay = 0.1, step.gradient_scale = 0.7f;
      for (step.step = 1; step.step <= 3; ++step.step) adamw(p, m, v, memory.random(Dtype::f32, {n}, 9), copy, step);
      square_sums(sums, p);
      for (const Tensor& t : {p, m, v, copy, sums})
        for (const double x : to_doubles(t)) all.push_back(x);
    }
    return all;
  };
  EXPECT_EQ(results(GetParam()), results("cpu"));
}

}  // namespace
}  // namespace tessera
