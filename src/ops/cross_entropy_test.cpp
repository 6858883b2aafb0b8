#include "ops/cross_entropy.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct CrossEntropy : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, CrossEntropy, ::testing::ValuesIn(every_device()), case_name);

struct CrossEntropyOnce : OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, CrossEntropyOnce, ::testing::ValuesIn(test_devices()), device_name);

struct Reference {
  std::vector<double> loss, gradient;
};

Reference reference(Tensor logits, Tensor labels, double scale) {
  const std::vector<double> x = to_doubles(logits), label = to_doubles(labels);
  const size_t rows = size_t(logits.rows()), cols = size_t(logits.cols());
  Reference r{std::vector<double>(rows), std::vector<double>(x.size())};
  for (size_t i = 0; i < rows; ++i) {
    const double* row = x.data() + i * cols;
    const double most = *std::max_element(row, row + cols), given = row[size_t(label[i])];
    double sum = 0;
    for (size_t j = 0; j < cols; ++j) sum += std::exp(row[j] - most);
    r.loss[i] = std::log(sum) + most - given;
    for (size_t j = 0; j < cols; ++j) r.gradient[i * cols + j] = (std::exp(row[j] - most) / sum - (j == size_t(label[i]))) * scale;
  }
  return r;
}

TEST_P(CrossEntropy, LossAndGradient) {
  for (const int64_t cols : {1, 7, 33, 100, 5000})
    for (const float size : {1.0f, 30.0f}) {
      const Tensor logits = memory.random(dtype, {33, cols}, 1, size), labels = memory.ids({33}, 2, int32_t(cols));
      const Tensor loss = memory.zeros(Dtype::f32, {33});
      const Reference r = reference(logits, labels, 0.125);
      const std::vector<double> before = to_doubles(logits);
      cross_entropy(loss, {}, logits, labels, 0);
      expect_close(loss, r.loss, 1e-6, "loss");
      EXPECT_EQ(to_doubles(logits), before);
      cross_entropy(loss, logits, logits, labels, 0.125f);
      expect_close(loss, r.loss, 1e-6, "loss");
      expect_close(logits, r.gradient, tolerance, "gradient");
    }
}

// The gradient in another tensor of another dtype leaves the logits alone.
TEST_P(CrossEntropy, GradientOfAnotherDtype) {
  for (const int64_t cols : {33, 160}) {
    const Tensor logits = memory.random(dtype, {9, cols}, 1), labels = memory.ids({9}, 2, int32_t(cols));
    const Tensor loss = memory.zeros(Dtype::f32, {9});
    const Reference r = reference(logits, labels, 0.125);
    const std::vector<double> before = to_doubles(logits);
    for (const Dtype other : {Dtype::f32, Dtype::bf16}) {
      const Tensor gradient = memory.zeros(other, logits.shape);
      cross_entropy(loss, gradient, logits, labels, 0.125f);
      expect_close(gradient, r.gradient, other == Dtype::f32 ? 1e-5 : 1e-2, "gradient");
    }
    expect_close(loss, r.loss, 1e-6, "loss");
    EXPECT_EQ(to_doubles(logits), before);
  }
}

TEST_P(CrossEntropy, SurvivesLargeLogits) {
  const Tensor logits = memory.of(dtype, {2, 3}, {30000, 0, -30000, -1e30, -1e30, -std::numeric_limits<double>::infinity()});
  const Tensor labels = memory.of(Dtype::i32, {2}, {0, 1}), loss = memory.zeros(Dtype::f32, {2});
  cross_entropy(loss, logits, logits, labels, 1);
  expect_close(loss, {0, std::log(2.0)}, 1e-6, "loss");
  expect_close(logits, {0, 0, 0, 0.5, -0.5, 0}, 1e-6, "gradient");
}

TEST_P(CrossEntropy, NanReachesTheLoss) {
  for (const size_t at : {0, 20, 36}) {
    std::vector<double> x(37, 0.5);
    x[at] = std::nan("");
    const Tensor logits = memory.of(dtype, {1, 37}, x), labels = memory.of(Dtype::i32, {1}, {1}), loss = memory.zeros(Dtype::f32, {1});
    cross_entropy(loss, {}, logits, labels, 0);
    EXPECT_TRUE(std::isnan(to_doubles(loss)[0])) << at;
  }
}

TEST_P(CrossEntropy, SameBitsOnAnyThreads) {
  expect_same_on_any_threads(GetParam().device, [&](TestMemory& m) {
    const Tensor logits = m.random(dtype, {33, 333}, 1), loss = m.zeros(Dtype::f32, {33});
    cross_entropy(loss, logits, logits, m.ids({33}, 2, 333), 0.5f);
    std::vector<double> all = to_doubles(logits);
    for (const double l : to_doubles(loss)) all.push_back(l);
    return all;
  });
}

// One row, so that the gradient scales with the one random number of dout.
TEST_P(CrossEntropyOnce, GradientsAgreeWithDifferences) {
  const Tensor logits = memory.random(Dtype::f32, {1, 33}, 1), labels = memory.ids({1}, 2, 33), loss = memory.zeros(Dtype::f32, {1});
  const Tensor gradient = memory.zeros(Dtype::f32, logits.shape);
  expect_gradients({.inputs = {logits},
                    .gradients = {gradient},
                    .out = loss,
                    .forward = [&] { cross_entropy(loss, {}, logits, labels, 0); },
                    .backward =
                        [&](Tensor dloss) {
                          backend->copy(gradient.data, logits.data, logits.bytes());
                          cross_entropy(loss, gradient, gradient, labels, float(to_doubles(dloss)[0]));
                        }},
                   memory);
}

TEST(CrossEntropyErrors, NameTheShapes) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor logits = memory.zeros(Dtype::f32, {3, 4}), labels = memory.ids({2}, 1, 4), loss = memory.zeros(Dtype::f32, {3});
  EXPECT_THROW(cross_entropy(loss, {}, logits, labels, 0), Error);
}

}  // namespace
}  // namespace tessera
