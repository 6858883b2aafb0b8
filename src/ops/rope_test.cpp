#include "ops/rope.h"

#include <cmath>

#include "core/error.h"
#include "ops/elementwise.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct Rope : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, Rope, ::testing::ValuesIn(every_device()), case_name);

struct Angles {
  Tensor cos, sin;
};

Angles angles(TestMemory& memory, int64_t positions, int64_t half) {
  std::vector<double> c, s;
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle = double(p) * std::pow(10000.0, -double(i) / double(half));
      c.push_back(std::cos(angle));
      s.push_back(std::sin(angle));
    }
  return {memory.of(Dtype::f32, {positions, half}, c), memory.of(Dtype::f32, {positions, half}, s)};
}

std::vector<double> rotated(Tensor x, Angles a, Tensor positions) {
  std::vector<double> v = to_doubles(x);
  const std::vector<double> c = to_doubles(a.cos), s = to_doubles(a.sin), at = to_doubles(positions);
  const size_t heads = size_t(x.shape.dim[2]), width = size_t(x.shape.dim[3]), half = size_t(a.cos.cols());
  for (size_t row = 0; row < v.size() / width; ++row)
    for (size_t i = 0; i < half; ++i) {
      const size_t angle = size_t(at[row / heads]) * half + i;
      double &p = v[row * width + i], &q = v[row * width + half + i];
      const double p0 = p, q0 = q;
      p = p0 * c[angle] - q0 * s[angle];
      q = q0 * c[angle] + p0 * s[angle];
    }
  return v;
}

TEST_P(Rope, TurnsPairs) {
  struct Case {
    int64_t width, half;
  };
  for (const Case k : {Case{2, 1}, Case{14, 7}, Case{64, 32}, Case{66, 33}, Case{100, 20}}) {
    const Angles a = angles(memory, 50, k.half);
    const Tensor x = memory.random(dtype, {2, 7, 3, k.width}, 1), positions = memory.ids({2, 7}, 2, 50);
    const std::vector<double> expected = rotated(x, a, positions);
    rope(x, a.cos, a.sin, positions);
    expect_close(x, expected, tolerance, "x");
  }
}

TEST_P(Rope, BackwardTurnsBack) {
  const Angles a = angles(memory, 50, 16);
  const Tensor x = memory.random(dtype, {2, 7, 3, 40}, 1), positions = memory.ids({2, 7}, 2, 50);
  const std::vector<double> before = to_doubles(x);
  rope(x, a.cos, a.sin, positions);
  EXPECT_GT(relative_error(to_doubles(x), before), 0.1);
  rope_backward(x, a.cos, a.sin, positions);
  expect_close(x, before, tolerance, "x");
}

// The columns from R on pass through, bit for bit.
TEST_P(Rope, LeavesTheRestAlone) {
  const Angles a = angles(memory, 50, 4);
  const Tensor x = memory.random(dtype, {1, 5, 2, 20}, 1), positions = memory.ids({1, 5}, 2, 50);
  const std::vector<double> before = to_doubles(x);
  rope(x, a.cos, a.sin, positions);
  const std::vector<double> after = to_doubles(x);
  for (size_t i = 0; i < after.size(); ++i) EXPECT_TRUE(i % 20 < 8 || after[i] == before[i]) << i;
}

struct RopeOnce : OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, RopeOnce, ::testing::ValuesIn(test_devices()), device_name);

TEST_P(RopeOnce, GradientsAgreeWithDifferences) {
  const Angles a = angles(memory, 50, 5);
  const Tensor x = memory.random(Dtype::f32, {2, 3, 2, 12}, 1), positions = memory.ids({2, 3}, 2, 50);
  const Tensor out = memory.zeros(Dtype::f32, x.shape), dx = memory.zeros(Dtype::f32, x.shape);
  expect_gradients({.inputs = {x},
                    .gradients = {dx},
                    .out = out,
                    .forward =
                        [&] {
                          convert(out, x);
                          rope(out, a.cos, a.sin, positions);
                        },
                    .backward =
                        [&](Tensor dout) {
                          convert(dx, dout);
                          rope_backward(dx, a.cos, a.sin, positions);
                        }},
                   memory);
}

TEST(RopeErrors, NameTheShapes) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor x = memory.zeros(Dtype::f32, {1, 3, 2, 8}), table = memory.zeros(Dtype::f32, {9, 5}), positions = memory.ids({1, 3}, 1, 9);
  EXPECT_THROW(rope(x, table, table, positions), Error);
  const Tensor good = memory.zeros(Dtype::f32, {9, 4});
  EXPECT_THROW(rope(x, good, good, memory.ids({1, 4}, 1, 9)), Error);
}

}  // namespace
}  // namespace tessera
