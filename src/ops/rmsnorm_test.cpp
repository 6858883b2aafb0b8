#include "ops/rmsnorm.h"

#include <cmath>

#include "core/error.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct Rmsnorm : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, Rmsnorm, ::testing::ValuesIn(every_device()), case_name);

struct RmsnormOnce : OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, RmsnormOnce, ::testing::ValuesIn(test_devices()), device_name);

constexpr float eps = 1e-5f;

struct Reference {
  std::vector<double> out, rstd, dx, dw;
};

Reference reference(Tensor x, Tensor w, Tensor dy) {
  const std::vector<double> xs = to_doubles(x), ws = to_doubles(w), ds = to_doubles(dy);
  const size_t rows = size_t(x.rows()), cols = size_t(x.cols());
  Reference r{std::vector<double>(xs.size()), std::vector<double>(rows), std::vector<double>(xs.size()), std::vector<double>(cols)};
  for (size_t i = 0; i < rows; ++i) {
    double squares = 0, product = 0;
    for (size_t j = i * cols; j < (i + 1) * cols; ++j) squares += xs[j] * xs[j];
    const double s = r.rstd[i] = 1 / std::sqrt(squares / double(cols) + double(eps));
    for (size_t j = i * cols, c = 0; c < cols; ++j, ++c) product += ds[j] * ws[c] * xs[j] * s / double(cols);
    for (size_t j = i * cols, c = 0; c < cols; ++j, ++c) {
      r.out[j] = xs[j] * s * ws[c];
      r.dx[j] = s * (ds[j] * ws[c] - xs[j] * s * product);
      r.dw[c] += ds[j] * xs[j] * s;
    }
  }
  return r;
}

TEST_P(Rmsnorm, ForwardAndBackward) {
  for (const int64_t cols : {1, 7, 33, 100, 576}) {
    const Shape shape{3, 11, cols};
    const Tensor x = memory.random(dtype, shape, 1, 2), w = memory.random(dtype, {cols}, 2), dy = memory.random(dtype, shape, 3);
    const Tensor out = memory.zeros(dtype, shape), rstd = memory.zeros(Dtype::f32, {33}), dx = memory.random(dtype, shape, 4);
    const Tensor dw = memory.zeros(Dtype::f32, {cols});
    const Reference r = reference(x, w, dy);
    rmsnorm(out, rstd, x, w, eps);
    expect_close(out, r.out, tolerance, "out");
    expect_close(rstd, r.rstd, 1e-6, "rstd");
    rmsnorm_backward(dx, dw, dy, x, w, rstd);
    // One column leaves a gradient that is the small difference of two equal terms.
    if (cols > 1) expect_close(dx, r.dx, tolerance, "dx");
    expect_close(dw, r.dw, tolerance, "dw");
  }
}

TEST_P(Rmsnorm, AddsToTheResidualStream) {
  const Shape shape{5, 100};
  const Tensor x = memory.random(dtype, shape, 1), w = memory.random(dtype, {100}, 2), dy = memory.random(dtype, shape, 3);
  const Tensor rstd = memory.zeros(Dtype::f32, {5}), dx = memory.random(dtype, shape, 4), out = memory.zeros(dtype, shape);
  std::vector<double> expected = to_doubles(dx);
  const Reference r = reference(x, w, dy);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += r.dx[i];
  rmsnorm(out, rstd, x, w, eps);
  rmsnorm_backward(dx, Tensor(), dy, x, w, rstd, true);
  expect_close(dx, expected, tolerance, "dx");
}

TEST_P(Rmsnorm, WeightGradientAccumulates) {
  const Shape shape{5, 100};
  const Tensor x = memory.random(dtype, shape, 1), w = memory.random(dtype, {100}, 2), dy = memory.random(dtype, shape, 3);
  const Tensor rstd = memory.zeros(Dtype::f32, {5}), dx = memory.zeros(dtype, shape), out = memory.zeros(dtype, shape);
  const Tensor once = memory.zeros(Dtype::f32, {100}), twice = memory.zeros(Dtype::f32, {100});
  rmsnorm(out, rstd, x, w, eps);
  rmsnorm_backward(dx, once, dy, x, w, rstd);
  rmsnorm_backward(dx, twice, dy, x, w, rstd);
  rmsnorm_backward(dx, twice, dy, x, w, rstd);
  std::vector<double> expected = to_doubles(once);
  for (double& v : expected) v *= 2;
  expect_close(twice, expected, 1e-6, "dw");
}

// Rows as long as models have them, and longer than the registers of a GPU's block; more rows than are summed at once for dw.
TEST_P(Rmsnorm, RowsOfAnyLength) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{300, 64}, {3, 1032}, {2, 4096}, {1, 8200}, {1, 20000}}) {
    SCOPED_TRACE(cols);
    const Shape shape{rows, cols};
    const Tensor x = memory.random(dtype, shape, 1), w = memory.random(dtype, {cols}, 2), dy = memory.random(dtype, shape, 3);
    const Tensor out = memory.zeros(dtype, shape), rstd = memory.zeros(Dtype::f32, {rows}), dx = memory.zeros(dtype, shape);
    const Tensor dw = memory.zeros(Dtype::f32, {cols});
    const Reference r = reference(x, w, dy);
    rmsnorm(out, rstd, x, w, eps);
    expect_close(out, r.out, tolerance, "out");
    rmsnorm_backward(dx, dw, dy, x, w, rstd);
    expect_close(dx, r.dx, tolerance, "dx");
    expect_close(dw, r.dw, tolerance, "dw");
    const Tensor row = x.rows_from(rows - 1, 1), part = out.rows_from(0, 1), norm = memory.zeros(Dtype::f32, {1});
    const std::vector<double> whole = to_doubles(out.rows_from(rows - 1, 1));
    rmsnorm(part, norm, row, w, eps);
    EXPECT_EQ(to_doubles(part), whole);
  }
}

// Hugging Face's Llama: the normalised value is rounded to bf16, then the product with the weight.
TEST_P(RmsnormOnce, Bf16RoundsBeforeTheWeight) {
  const int64_t cols = 100;
  const Tensor x = memory.random(Dtype::bf16, {cols}, 1), w = memory.random(Dtype::bf16, {cols}, 2);
  const Tensor out = memory.zeros(Dtype::bf16, {cols}), rstd = memory.zeros(Dtype::f32, {1});
  rmsnorm(out, rstd, x, w, eps);
  const std::vector<double> xs = to_doubles(x), ws = to_doubles(w), got = to_doubles(out);
  for (size_t i = 0; i < got.size(); ++i) {
    const Bf16 normal = float(xs[i]) * float(to_doubles(rstd)[0]), expected = float(normal) * float(ws[i]);
    EXPECT_EQ(float(got[i]), float(expected));
  }
}

TEST_P(Rmsnorm, SameBitsOnAnyThreads) {
  expect_same_on_any_threads(GetParam().device, [&](TestMemory& m) {
    const Shape shape{200, 333};
    const Tensor x = m.random(dtype, shape, 1), w = m.random(dtype, {333}, 2), dy = m.random(dtype, shape, 3);
    const Tensor out = m.zeros(dtype, shape), rstd = m.zeros(Dtype::f32, {200}), dx = m.zeros(dtype, shape),
                 dw = m.zeros(Dtype::f32, {333});
    rmsnorm(out, rstd, x, w, eps);
    rmsnorm_backward(dx, dw, dy, x, w, rstd);
    std::vector<double> all = to_doubles(dw);
    for (const Tensor& t : {out, rstd, dx}) {
      const std::vector<double> values = to_doubles(t);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  });
}

TEST_P(RmsnormOnce, GradientsAgreeWithDifferences) {
  for (const int64_t cols : {7, 33, 100}) {
    const Tensor x = memory.random(Dtype::f32, {7, cols}, 1), w = memory.random(Dtype::f32, {cols}, 2);
    const Tensor dx = memory.zeros(Dtype::f32, x.shape), dw = memory.zeros(Dtype::f32, w.shape);
    const Tensor out = memory.zeros(Dtype::f32, x.shape), rstd = memory.zeros(Dtype::f32, {7});
    expect_gradients({.inputs = {x, w},
                      .gradients = {dx, dw},
                      .out = out,
                      .forward = [&] { rmsnorm(out, rstd, x, w, eps); },
                      .backward = [&](Tensor dout) { rmsnorm_backward(dx, dw, dout, x, w, rstd); }},
                     memory);
  }
}

TEST(RmsnormErrors, NameTheShapes) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor x = memory.zeros(Dtype::f32, {3, 4}), w = memory.zeros(Dtype::f32, {5}), rstd = memory.zeros(Dtype::f32, {3});
  EXPECT_THROW(rmsnorm(x, rstd, x, w, eps), Error);
  EXPECT_THROW(rmsnorm_backward(x, Tensor(), x, x, w, rstd), Error);
}

}  // namespace
}  // namespace tessera
