#include "ops/swiglu.h"

#include <cmath>

#include "core/error.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct Swiglu : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, Swiglu, ::testing::ValuesIn(every_device()), case_name);

struct SwigluOnce : OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, SwigluOnce, ::testing::ValuesIn(test_devices()), device_name);

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST_P(Swiglu, ForwardAndBackwardAlsoInPlace) {
  for (const int64_t n : {1, 7, 33, 100, 9001}) {
    const Tensor gate = memory.random(dtype, {n}, 1, 3), up = memory.random(dtype, {n}, 2), dout = memory.random(dtype, {n}, 3);
    const Tensor out = memory.zeros(dtype, {n}), dgate = memory.zeros(dtype, {n}), dup = memory.zeros(dtype, {n});
    const std::vector<double> g = to_doubles(gate), u = to_doubles(up), dy = to_doubles(dout);
    std::vector<double> y(g.size()), dg(g.size()), du(g.size());
    for (size_t i = 0; i < g.size(); ++i) {
      const double s = sigmoid(g[i]);
      y[i] = g[i] * s * u[i];
      dg[i] = dy[i] * u[i] * s * (1 + g[i] * (1 - s));
      du[i] = dy[i] * g[i] * s;
    }
    swiglu(out, gate, up);
    expect_close(out, y, tolerance, "out");
    swiglu_backward(dgate, dup, dout, gate, up);
    expect_close(dgate, dg, tolerance, "dgate");
    expect_close(dup, du, tolerance, "dup");
    const std::vector<double> apart_gate = to_doubles(dgate), apart_up = to_doubles(dup);
    swiglu_backward(gate, up, dout, gate, up);
    EXPECT_EQ(to_doubles(gate), apart_gate);
    EXPECT_EQ(to_doubles(up), apart_up);
  }
}

// To 1e-6 of each element, and finite where exp is not.
TEST_P(SwigluOnce, IsAccurateFromEndToEnd) {
  std::vector<double> g;
  for (double x = -1000; x <= 1000; x += 0.37) g.push_back(float(std::abs(x) < 500 ? x / 5 : x));
  const Shape shape{int64_t(g.size())};
  const Tensor gate = memory.of(Dtype::f32, shape, g), up = memory.of(Dtype::f32, shape, std::vector<double>(g.size(), 1));
  const Tensor out = memory.zeros(Dtype::f32, shape);
  swiglu(out, gate, up);
  const std::vector<double> y = to_doubles(out);
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], g[i] * sigmoid(g[i]), 1e-6 * std::abs(g[i] * sigmoid(g[i])) + 1e-34) << g[i];
}

TEST_P(SwigluOnce, GradientsAgreeWithDifferences) {
  const Shape shape{7, 33};
  const Tensor gate = memory.random(Dtype::f32, shape, 1), up = memory.random(Dtype::f32, shape, 2), out = memory.zeros(Dtype::f32, shape);
  const Tensor dgate = memory.zeros(Dtype::f32, shape), dup = memory.zeros(Dtype::f32, shape);
  expect_gradients({.inputs = {gate, up},
                    .gradients = {dgate, dup},
                    .out = out,
                    .forward = [&] { swiglu(out, gate, up); },
                    .backward = [&](Tensor dout) { swiglu_backward(dgate, dup, dout, gate, up); }},
                   memory);
}

TEST(SwigluErrors, NameTheShapes) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor a = memory.zeros(Dtype::f32, {3, 4}), b = memory.zeros(Dtype::f32, {3, 5});
  EXPECT_THROW(swiglu(a, a, b), Error);
  EXPECT_THROW(swiglu_backward(a, a, b, a, a), Error);
}

}  // namespace
}  // namespace tessera
