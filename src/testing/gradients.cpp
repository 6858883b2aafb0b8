#include "testing/gradients.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <ostream>

#include "core/arena.h"
#include "core/rng.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

// Calls f.operator()<T>() with the C++ type of any dtype.
template <class F>
decltype(auto) dispatch_any(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f.template operator()<float>();
    case Dtype::bf16:
      return f.template operator()<Bf16>();
    case Dtype::f16:
      return f.template operator()<F16>();
    case Dtype::f64:
      return f.template operator()<double>();
    case Dtype::u8:
      return f.template operator()<uint8_t>();
    case Dtype::i32:
      return f.template operator()<int32_t>();
    case Dtype::i64:
      break;
  }
  return f.template operator()<int64_t>();
}

// A double reaches 16-bit floats through float, as a value computed on a device does.
template <class T>
T from_double(double v) {
  if constexpr (sizeof(T) == 2) return T(float(v));
  return static_cast<T>(v);
}

template <class T>
double as_double(T v) {
  if constexpr (sizeof(T) == 2) return float(v);
  return static_cast<double>(v);
}

double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

double weighted_sum(Tensor out, const std::vector<double>& weights) {
  const std::vector<double> values = to_doubles(out);
  return std::inner_product(values.begin(), values.end(), weights.begin(), 0.0);
}

void put(Tensor t, int64_t i, float value) { t.home->copy(t.as<float>() + i, &value, sizeof value); }

// Up to `count` different elements of [0, n); all of them when n is small.
std::vector<int64_t> probed_elements(int64_t n, int count, uint64_t seed) {
  std::vector<int64_t> order = shuffled(n, seed, 0);
  order.resize(size_t(std::min<int64_t>(n, count)));
  return order;
}

}  // namespace

std::vector<DeviceRow> every_device() {
  std::vector<DeviceRow> rows;
  for (const char* device : test_devices()) {
    rows.push_back({device, Dtype::f32, 1e-5f});
    rows.push_back({device, Dtype::bf16, 1e-2f});
  }
  return rows;
}
std::string row_name(const DeviceRow& row) { return std::string(row.device) + (row.dtype == Dtype::f32 ? "_f32" : "_bf16"); }
void PrintTo(const DeviceRow& row, std::ostream* out) { *out << row_name(row); }

struct TestMemory::Impl {
  Impl(Backend& backend, size_t bytes) : arena(&backend, backend.allocate(bytes, "test memory")) {}
  Arena arena;
};

TestMemory::TestMemory(Backend& backend, size_t bytes) : backend_(backend), impl_(std::make_unique<Impl>(backend, bytes)) {}
TestMemory::~TestMemory() = default;

Tensor TestMemory::zeros(Dtype dtype, Shape shape) {
  const Tensor t = impl_->arena.take(dtype, shape, "test tensor");
  backend_.fill_zero(t);
  return t;
}

Tensor TestMemory::of(Dtype dtype, Shape shape, const std::vector<double>& values) {
  EXPECT_EQ(size_t(shape.size()), values.size());
  const Tensor t = zeros(dtype, shape);
  dispatch_any(dtype, [&]<class T>() {
    std::vector<T> host(values.size());
    std::transform(values.begin(), values.end(), host.begin(), from_double<T>);
    backend_.copy(t.data, host.data(), std::min(t.bytes(), host.size() * sizeof(T)));
  });
  return t;
}

Tensor TestMemory::random(Dtype dtype, Shape shape, uint64_t seed, float scale) {
  const Rng rng(seed, Purpose::init, "test");
  std::vector<double> values(size_t(shape.size()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = double(scale * rng.normal(i));
  return of(dtype, shape, values);
}

Tensor TestMemory::ids(Shape shape, uint64_t seed, int32_t below) {
  const Rng rng(seed, Purpose::sample, "test");
  std::vector<double> values(size_t(shape.size()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = double(rng.below(i, uint64_t(below)));
  return of(Dtype::i32, shape, values);
}

std::vector<double> to_doubles(Tensor t) {
  std::vector<double> values(size_t(t.size()));
  dispatch_any(t.dtype, [&]<class T>() {
    std::vector<T> host(values.size());
    t.home->copy(host.data(), t.data, t.bytes());
    std::transform(host.begin(), host.end(), values.begin(), as_double<T>);
  });
  return values;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  std::vector<double> difference(a.size());
  std::transform(a.begin(), a.end(), b.begin(), difference.begin(), std::minus<>());
  const double d = norm(difference);
  return d == 0 ? 0 : d / norm(b);
}

// Written so that NaN fails.
void expect_close(Tensor a, const std::vector<double>& b, double tolerance, const char* what) {
  EXPECT_EQ(size_t(a.size()), b.size()) << what;
  EXPECT_LE(relative_error(to_doubles(a), b), tolerance) << what << " " << a.shape.text();
}

void expect_gradients(const GradientCheck& check, TestMemory& memory, uint64_t seed) {
  ASSERT_EQ(check.inputs.size(), check.gradients.size());
  const Tensor dout = memory.random(Dtype::f32, check.out.shape, seed);
  const std::vector<double> weights = to_doubles(dout);
  for (const Tensor& g : check.gradients) memory.backend().fill_zero(g);
  check.forward();
  check.backward(dout);

  for (size_t i = 0; i < check.inputs.size(); ++i) {
    const Tensor input = check.inputs[i];
    ASSERT_EQ(input.dtype, Dtype::f32);
    ASSERT_EQ(input.size(), check.gradients[i].size());
    const std::vector<double> values = to_doubles(input), gradient = to_doubles(check.gradients[i]);
    std::vector<double> given, measured;
    for (const int64_t e : probed_elements(input.size(), check.probes, seed + i)) {
      const float value = float(values[size_t(e)]), above = value + check.h, below = value - check.h;
      put(input, e, above);
      check.forward();
      const double loss_above = weighted_sum(check.out, weights);
      put(input, e, below);
      check.forward();
      const double loss_below = weighted_sum(check.out, weights);
      put(input, e, value);
      given.push_back(gradient[size_t(e)]);
      measured.push_back((loss_above - loss_below) / (double(above) - double(below)));
    }
    EXPECT_LE(relative_error(given, measured), check.tolerance) << "gradient of input " << i << " " << input.shape.text();
  }
  check.forward();
}

}  // namespace tessera
