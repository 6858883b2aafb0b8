#include "ops/elementwise.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/rng.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct Elementwise : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, Elementwise, ::testing::ValuesIn(every_device()), case_name);

struct ElementwiseOnce : OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, ElementwiseOnce, ::testing::ValuesIn(test_devices()), device_name);

constexpr int64_t lengths[] = {1, 7, 33, 100, 20011};

std::vector<double> sum(std::vector<double> x, const std::vector<double>& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  return x;
}

TEST_P(Elementwise, AddsAlsoInPlace) {
  for (const int64_t n : lengths) {
    const Tensor x = memory.random(dtype, {n}, 1), y = memory.random(dtype, {n}, 2), out = memory.zeros(dtype, {n});
    const std::vector<double> expected = sum(to_doubles(x), to_doubles(y));
    add(out, x, y);
    expect_close(out, expected, tolerance, "out");
    const std::vector<double> apart = to_doubles(out);
    const Tensor same = memory.of(dtype, {n}, to_doubles(x));
    add(same, same, y);
    EXPECT_EQ(to_doubles(same), apart);
    add(y, x, y);
    EXPECT_EQ(to_doubles(y), apart);
  }
}

TEST_P(Elementwise, Accumulates) {
  for (const int64_t n : lengths) {
    const Tensor total = memory.random(Dtype::f32, {n}, 1), x = memory.random(dtype, {n}, 2);
    const std::vector<double> expected = sum(to_doubles(total), to_doubles(x));
    accumulate(total, x);
    expect_close(total, expected, 1e-6, "sum");
  }
}

TEST_P(Elementwise, AddsABiasToEachRow) {
  for (const int64_t cols : {1, 7, 33, 100}) {
    const Tensor y = memory.random(dtype, {3, 5, cols}, 1), bias = memory.random(dtype, {cols}, 2);
    std::vector<double> expected = to_doubles(y);
    const std::vector<double> b = to_doubles(bias);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += b[i % size_t(cols)];
    add_bias(y, bias);
    expect_close(y, expected, tolerance, "y");
  }
}

TEST_P(Elementwise, SumsColumnsOntoTheGradient) {
  for (const int64_t cols : {1, 7, 33, 100, 1000}) {
    const Tensor dy = memory.random(dtype, {3, 11, cols}, 1), dbias = memory.random(Dtype::f32, {cols}, 2);
    std::vector<double> expected = to_doubles(dbias);
    const std::vector<double> x = to_doubles(dy);
    for (size_t i = 0; i < x.size(); ++i) expected[i % size_t(cols)] += x[i];
    bias_backward(dbias, dy);
    expect_close(dbias, expected, 1e-6, "dbias");
  }
}

// More rows than are summed at once, and views whose rows begin anywhere.
TEST_P(Elementwise, SumsManyRowsAndViews) {
  for (const int64_t cols : {5, 64}) {
    const Tensor all = memory.random(dtype, {701, cols}, 1), dy = all.rows_from(1, 700), dbias = memory.zeros(Dtype::f32, {cols});
    std::vector<double> expected(static_cast<size_t>(cols));
    const std::vector<double> x = to_doubles(dy);
    for (size_t i = 0; i < x.size(); ++i) expected[i % size_t(cols)] += x[i];
    bias_backward(dbias, dy);
    expect_close(dbias, expected, 1e-6, "dbias");
    const Tensor y = all.rows_from(3, 2), sums = memory.zeros(dtype, y.shape);
    const std::vector<double> twice = sum(to_doubles(y), to_doubles(y));
    add(sums, y, y);
    expect_close(sums, twice, tolerance, "y + y");
    const Tensor wide = memory.random(Dtype::f32, y.shape, 2);
    const std::vector<double> total = sum(to_doubles(wide), to_doubles(y));
    accumulate(wide, y);
    expect_close(wide, total, 1e-6, "sum");
  }
}

// The numbers of core/rng.h, bit for bit, from anywhere in the stream.
TEST_P(Elementwise, NormalsAreThoseOfTheStream) {
  const Rng rng(7, Purpose::init, "normals");
  for (const uint64_t begin : {uint64_t(0), uint64_t(5), uint64_t(1) << 40 | 3}) {
    for (const int64_t n : {1, 30, 10007}) {
      const Tensor out = memory.zeros(dtype, {n});
      random_normal(out, rng, begin, 0.02f);
      const std::vector<double> got = to_doubles(out);
      for (size_t i = 0; i < got.size(); ++i) {
        const float expected = rng.normal(begin + i) * 0.02f;
        ASSERT_EQ(got[i], double(dtype == Dtype::f32 ? expected : float(Bf16(expected)))) << begin << " " << i;
      }
    }
  }
}

TEST_P(Elementwise, SameBitsOnAnyThreads) {
  expect_same_on_any_threads(GetParam().device, [&](TestMemory& m) {
    const Tensor dbias = m.zeros(Dtype::f32, {333});
    bias_backward(dbias, m.random(dtype, {200, 333}, 1));
    return to_doubles(dbias);
  });
}

TEST_P(Elementwise, ConvertsToNearestEven) {
  for (const int64_t n : lengths) {
    const Tensor x = memory.random(Dtype::f32, {n}, 1, 3), out = memory.zeros(dtype, {n});
    convert(out, x);
    const std::vector<double> given = to_doubles(x), got = to_doubles(out);
    for (size_t i = 0; i < given.size(); ++i) ASSERT_EQ(got[i], dtype == Dtype::f32 ? given[i] : double(float(Bf16(float(given[i])))));
    const Tensor back = memory.zeros(Dtype::f32, {n});
    convert(back, out);
    EXPECT_EQ(to_doubles(back), got);
  }
}

TEST_P(Elementwise, ConvertsF16) {
  for (const int64_t n : lengths) {
    const Tensor x = memory.random(Dtype::f16, {n}, 1), out = memory.zeros(dtype, {n});
    convert(out, x);
    expect_close(out, to_doubles(x), dtype == Dtype::f32 ? 0 : 4e-3, "out");
  }
}

// Every kind of float that rounding could get wrong, with the scalar rule of core/dtype.h as the reference.
TEST_P(ElementwiseOnce, ConvertsSpecialValuesToBf16) {
  const std::vector<uint32_t> bits = {0x00000000, 0x80000000, 0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x3f80ffff, 0x7f7fffff,
                                      0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffffffff, 0x7fffffff, 0x00000001,
                                      0x007fffff, 0x80008000, 0x00018000, 0x00007fff, 0x7f7f8000, 0x7f7f7fff};
  const int64_t n = int64_t(bits.size());
  const Tensor x = memory.zeros(Dtype::f32, {n}), out = memory.zeros(Dtype::bf16, {n});
  backend->copy(x.data, bits.data(), x.bytes());
  convert(out, x);
  std::vector<uint16_t> got(bits.size());
  backend->copy(got.data(), out.data, out.bytes());
  for (size_t i = 0; i < bits.size(); ++i) {
    const float given = std::bit_cast<float>(bits[i]);
    if (std::isnan(given))
      EXPECT_GT(got[i] & 0x7fff, 0x7f80) << std::hex << bits[i];
    else
      EXPECT_EQ(got[i], Bf16(given).bits) << std::hex << bits[i];
  }
}

// Which NaN a NaN becomes is a device's choice; the CPU's is that of core/dtype.h.
TEST(Convert, NanBecomesTheNanOfDtype) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const std::vector<uint32_t> bits = {0x7fc00000, 0x7f800001, 0xffffffff, 0x7fffffff, 0xff800001};
  const int64_t n = int64_t(bits.size());
  const Tensor x = memory.zeros(Dtype::f32, {n}), out = memory.zeros(Dtype::bf16, {n});
  backend->copy(x.data, bits.data(), x.bytes());
  convert(out, x);
  for (size_t i = 0; i < bits.size(); ++i)
    EXPECT_EQ(out.as<Bf16>()[i].bits, Bf16(std::bit_cast<float>(bits[i])).bits) << std::hex << bits[i];
}

TEST_P(ElementwiseOnce, BiasGradientsAgreeWithDifferences) {
  const Tensor x = memory.random(Dtype::f32, {7, 33}, 1), bias = memory.random(Dtype::f32, {33}, 2);
  const Tensor y = memory.zeros(Dtype::f32, x.shape), dbias = memory.zeros(Dtype::f32, {33});
  expect_gradients({.inputs = {bias},
                    .gradients = {dbias},
                    .out = y,
                    .forward =
                        [&] {
                          convert(y, x);
                          add_bias(y, bias);
                        },
                    .backward = [&](Tensor dy) { bias_backward(dbias, dy); }},
                   memory);
}

TEST(ElementwiseErrors, NameTheShapes) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor a = memory.zeros(Dtype::f32, {3, 4}), b = memory.zeros(Dtype::f32, {3, 5}), half = memory.zeros(Dtype::bf16, {3, 4});
  EXPECT_THROW(add(a, a, b), Error);
  EXPECT_THROW(add(a, a, half), Error);
  EXPECT_THROW(accumulate(half, a), Error);
  EXPECT_THROW(add_bias(a, b), Error);
  EXPECT_THROW(bias_backward(b, a), Error);
  EXPECT_THROW(convert(b, a), Error);
}

}  // namespace
}  // namespace tessera
