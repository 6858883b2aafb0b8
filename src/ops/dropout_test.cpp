#include <gtest/gtest.h>

#include <numeric>

#include "core/rng.h"
#include "ops/elementwise.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

constexpr uint64_t key = 0x0123456789abcdefull;
constexpr int64_t large_row_key = -0x123456789abcdefll;

class Dropout : public testing::TestWithParam<DeviceRow> {
 protected:
  std::unique_ptr<Backend> backend_ = make_test_backend(GetParam().device, 2);
  TestMemory memory_{*backend_};

  Tensor run(Tensor x, const std::vector<double>& row_keys, float p) {
    const Tensor out = memory_.zeros(x.dtype, x.shape);
    dropout(out, x, memory_.of(Dtype::i64, {x.shape.dim[0]}, row_keys), key, p);
    return out;
  }
  Tensor ones(Shape shape) { return memory_.of(GetParam().dtype, shape, std::vector<double>(size_t(shape.size()), 1.0)); }
};

bool kept(uint64_t row_key, uint64_t i, float p) {
  const Philox4 words = philox({uint32_t(i / 4), uint32_t(i / 4 >> 32), uint32_t(row_key), uint32_t(row_key >> 32)}, key);
  return double(words[i % 4]) >= double(p) * 0x1p32;
}

TEST_P(Dropout, MaskIsPhiloxOfRowKeyAndPosition) {
  for (const Shape& shape : {Shape{2, 1, 1}, Shape{2, 5, 7}, Shape{2, 33, 96}, Shape{2, 130, 257}}) {
    SCOPED_TRACE(shape.text());
    const Tensor x = memory_.random(GetParam().dtype, shape, 1), row_keys = memory_.zeros(Dtype::i64, {2}),
                 out = memory_.zeros(x.dtype, shape);
    const int64_t rows[] = {5, large_row_key};
    backend_->copy(row_keys.data, rows, sizeof rows);
    for (const float p : {0.0f, 0.1f, 0.5f, 0.95f}) {
      dropout(out, x, row_keys, key, p);
      const std::vector<double> given = to_doubles(x);
      std::vector<double> expected(given.size());
      const size_t row = expected.size() / 2;
      for (size_t i = 0; i < expected.size(); ++i) {
        if (kept(uint64_t(rows[i / row]), i % row, p)) expected[i] = given[i] / (1 - double(p));
      }
      expect_close(out, expected, GetParam().tolerance, "out");
      const std::vector<double> values = to_doubles(out);
      for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i] == 0, expected[i] == 0) << i;
    }
  }
}

TEST_P(Dropout, KeepsTheMean) {
  const std::vector<double> out = to_doubles(run(ones({4, 100, 100}), {1, 2, 3, 4}, 0.25f));
  EXPECT_NEAR(std::accumulate(out.begin(), out.end(), 0.0) / double(out.size()), 1, 0.015);  // five standard deviations
}

TEST_P(Dropout, RowKeyDecidesNotPlaceOrPadding) {
  const std::vector<double> batch = to_doubles(run(ones({3, 40, 24}), {7, 8, 7}, 0.5f));
  const std::vector<double> alone = to_doubles(run(ones({1, 60, 24}), {8}, 0.5f));
  const size_t row = 40 * 24;
  EXPECT_TRUE(std::equal(batch.begin(), batch.begin() + row, batch.begin() + 2 * row));
  EXPECT_FALSE(std::equal(batch.begin(), batch.begin() + row, batch.begin() + row));
  EXPECT_TRUE(std::equal(batch.begin() + row, batch.begin() + 2 * row, alone.begin()));
}

TEST_P(Dropout, InPlaceAndAnyNumberOfThreadsGiveTheSame) {
  const Shape shape = {2, 300, 100};
  const Tensor x = memory_.random(GetParam().dtype, shape, 3);
  const std::vector<double> expected = to_doubles(run(x, {1, 2}, 0.3f));
  for (const int threads : {1, 3}) {
    const auto backend = make_test_backend(GetParam().device, threads);
    TestMemory memory(*backend);
    const Tensor y = memory.random(GetParam().dtype, shape, 3);
    dropout(y, y, memory.of(Dtype::i64, {2}, {1, 2}), key, 0.3f);
    EXPECT_EQ(to_doubles(y), expected);
  }
}

struct DropoutOnce : OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, DropoutOnce, ::testing::ValuesIn(test_devices()), device_name);

TEST_P(DropoutOnce, TheSameCallIsItsBackward) {
  const Tensor x = memory.random(Dtype::f32, {2, 6, 5}, 3), dx = memory.zeros(Dtype::f32, x.shape), out = memory.zeros(Dtype::f32, x.shape);
  const Tensor row_keys = memory.of(Dtype::i64, {2}, {1, 2});
  expect_gradients(
      {{x}, {dx}, out, [&] { dropout(out, x, row_keys, key, 0.4f); }, [&](Tensor dout) { dropout(dx, dout, row_keys, key, 0.4f); }},
      memory);
}

INSTANTIATE_TEST_SUITE_P(OnEveryDevice, Dropout, testing::ValuesIn(every_device()), [](const auto& row) { return row_name(row.param); });

}  // namespace
}  // namespace tessera
