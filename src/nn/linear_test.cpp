#include "nn/linear.h"

#include <gtest/gtest.h>

#include <tuple>

#include "nn/nn_test.h"
#include "ops/elementwise.h"
#include "quant/codebook4.h"

namespace tessera {
namespace {

struct LinearCase {
  const char* name;
  bool trains, bias;
  int64_t rank;
  float dropout;
};

class LinearGradients : public CasesOnDevices<LinearCase> {};

TEST_P(LinearGradients, MatchFiniteDifferences) {
  const auto& [device, c] = GetParam();
  NnTest t(device);
  Context ctx = t.context(2, 5, 4);
  ctx.training = true;
  Linear l = t.linear("mlp.up_proj", 7, 6, 1, c.trains, c.bias, c.rank, c.dropout);
  const Tensor x = t.memory.random(Dtype::f32, {10, 6}, 2), y = t.memory.zeros(Dtype::f32, {10, 7}),
               dx = t.memory.zeros(Dtype::f32, {10, 6});
  Trainable trainable(l);
  LinearSaved saved = take_saved(l, 10, ctx);
  GradientCheck check;
  check.inputs = trainable.values, check.gradients = trainable.gradients;
  check.inputs.push_back(x), check.gradients.push_back(dx);
  check.out = y;
  check.forward = [&] { linear_forward({{y, l, &saved}}, x, ctx); };
  check.backward = [&](Tensor dy) {
    trainable.zero();
    linear_backward(dx, false, {{l, dy, saved}}, x, ctx);
  };
  expect_gradients(check, t.memory);
}

INSTANTIATE_TEST_SUITE_P(Kinds, LinearGradients,
                         testing::Combine(testing::ValuesIn(f32_devices()),
                                          testing::Values(LinearCase{"dense", true, false, 0, 0}, LinearCase{"bias", true, true, 0, 0},
                                                          LinearCase{"adapter", false, false, 3, 0},
                                                          LinearCase{"adapter_on_training_base", true, true, 2, 0},
                                                          LinearCase{"dropout", false, false, 3, 0.4f})),
                         device_case_name<LinearCase>);

class LinearTest : public OnDevices {};
INSTANTIATE_TEST_SUITE_P(Devices, LinearTest, testing::ValuesIn(f32_devices()), device_name);

TEST_P(LinearTest, GradientsOfParametersAccumulateAndThatOfXOverwrites) {
  NnTest t(GetParam());
  const Context ctx = t.context(1, 4, 4);
  Linear l = t.linear("q", 5, 6, 1, true, true, 2);
  const Tensor x = t.memory.random(Dtype::f32, {4, 6}, 2), y = t.memory.zeros(Dtype::f32, {4, 5}),
               dy = t.memory.random(Dtype::f32, {4, 5}, 3), dx = t.memory.random(Dtype::f32, {4, 6}, 4);
  LinearSaved saved = take_saved(l, 4, ctx);
  linear_forward({{y, l, &saved}}, x, ctx);
  linear_backward(dx, false, {{l, dy, saved}}, x, ctx);
  Trainable trainable(l);
  std::vector<std::vector<double>> once;
  for (const Tensor& g : trainable.gradients) once.push_back(to_doubles(g));
  const auto dx_once = to_doubles(dx);
  linear_backward(dx, false, {{l, dy, saved}}, x, ctx);
  EXPECT_EQ(to_doubles(dx), dx_once);
  for (size_t i = 0; i < once.size(); ++i) {
    for (double& v : once[i]) v *= 2;
    expect_close(trainable.gradients[i], once[i], 1e-6, "accumulated");
  }
  linear_backward(dx, true, {{l, dy, saved}}, x, ctx);
  std::vector<double> twice = dx_once;
  for (double& v : twice) v *= 2;
  expect_close(dx, twice, 1e-6, "dx_accumulates");
}

// A quantized base computes with exactly its decoded weights.
TEST_P(LinearTest, Nf4BaseIsItsDecodedMatrix) {
  NnTest t(GetParam());
  const Context ctx = t.context(1, 3, 4);
  for (const bool nested : {false, true}) {
    Linear l;
    l.weight = make_weight(find_format("nf4"), nested, 8, 64, Dtype::f32, false);
    auto& codes = std::get<Codebook4>(l.weight.store);
    const auto fill = [&](Param& p, auto value) { p.value = t.list(p.value.dtype, p.value.shape, value); };
    fill(codes.codes, [](int64_t i) { return double(uint8_t(i * 37)); });
    if (nested) {
      fill(codes.absmax_codes, [](int64_t i) { return double(uint8_t(100 + 20 * i)); });
      fill(codes.nested_absmax, [](int64_t) { return 0.3; });
      fill(codes.nested_offset, [](int64_t) { return 0.7; });
    } else {
      fill(codes.absmax, [](int64_t i) { return double(0.1f * float(i + 1)); });
    }
    const Tensor w = t.memory.zeros(Dtype::f32, {8, 64}), x = t.memory.random(Dtype::f32, {3, 64}, 6),
                 y = t.memory.zeros(Dtype::f32, {3, 8}), dy = t.memory.random(Dtype::f32, {3, 8}, 7),
                 dx = t.memory.zeros(Dtype::f32, {3, 64});
    decode(w, codes, t.memory.zeros(Dtype::f32, {8}));
    linear_forward({{y, l, nullptr}}, x, ctx);
    linear_backward(dx, false, {{l, dy, {}}}, x, ctx);
    const std::vector<double> ws = to_doubles(w), xs = to_doubles(x), dys = to_doubles(dy);
    std::vector<double> wanted(24, 0), wanted_dx(192, 0);
    for (int r = 0; r < 3; ++r)
      for (int o = 0; o < 8; ++o)
        for (int i = 0; i < 64; ++i) {
          wanted[size_t(r * 8 + o)] += xs[size_t(r * 64 + i)] * ws[size_t(o * 64 + i)];
          wanted_dx[size_t(r * 64 + i)] += dys[size_t(r * 8 + o)] * ws[size_t(o * 64 + i)];
        }
    expect_close(y, wanted, 1e-6, "y");
    expect_close(dx, wanted_dx, 1e-6, "dx");
  }
}

// Dropout acts in training only, and its mask belongs to the sample, not to its place in the batch.
TEST_P(LinearTest, DropoutBelongsToTheSample) {
  NnTest t(GetParam());
  Context ctx = t.context(2, 7, 4);
  const Linear l = t.linear("v", 5, 6, 1, false, false, 2, 0.5f);
  const Tensor x = t.memory.random(Dtype::f32, {14, 6}, 2), y = t.memory.zeros(Dtype::f32, {14, 5}),
               still = t.memory.zeros(Dtype::f32, {14, 5});
  linear_forward({{still, l, nullptr}}, x, ctx);
  ctx.training = true;
  linear_forward({{y, l, nullptr}}, x, ctx);
  EXPECT_NE(to_doubles(y), to_doubles(still));
  Context second = t.context(1, 7, 4);
  second.training = true;
  second.row_keys = t.memory.of(Dtype::i64, {1}, {101});
  const Tensor alone = t.memory.zeros(Dtype::f32, {7, 5});
  linear_forward({{alone, l, nullptr}}, x.rows_from(7, 7), second);
  EXPECT_EQ(to_doubles(alone), to_doubles(y.rows_from(7, 7)));
}

// Outputs and gradients of layers that share an input, all numbers given in 16 bits: y and dB, dA of each, then dx.
std::vector<std::vector<double>> shared_input(const char* device, Dtype dtype, float dropout, int64_t rank) {
  NnTest t(device);
  Context ctx = t.context(2, 9, 4, dtype);
  ctx.training = true;
  const auto given = [&](Shape shape, uint64_t seed) {
    return t.memory.of(dtype, shape, to_doubles(t.memory.random(Dtype::bf16, shape, seed, 0.3f)));
  };
  std::vector<Linear> layers;
  for (const auto& [name, out, seed] :
       {std::tuple<const char*, int64_t, uint64_t>("q_proj", 40, 1), {"k_proj", 24, 5}, {"v_proj", 24, 9}}) {
    Linear l = t.linear(name, out, 32, seed, false, false, rank, dropout);
    std::get<Dense>(l.weight.store).weight.value = given({out, 32}, seed);
    l.adapter->a.value = given({rank, 32}, seed + 1), l.adapter->b.value = given({out, rank}, seed + 2);
    layers.push_back(l);
  }
  const Tensor x = given({18, 32}, 20), dx = t.memory.zeros(dtype, {18, 32});
  std::vector<Tensor> y, dy;
  std::vector<LinearSaved> saved;
  for (const Linear& l : layers) {
    y.push_back(t.memory.zeros(dtype, {18, l.weight.out}));
    dy.push_back(given({18, l.weight.out}, uint64_t(30 + l.weight.out)));
    saved.push_back(take_saved(l, 18, ctx));
  }
  linear_forward({{y[0], layers[0], &saved[0]}, {y[1], layers[1], &saved[1]}, {y[2], layers[2], &saved[2]}}, x, ctx);
  linear_backward(dx, false, {{layers[0], dy[0], saved[0]}, {layers[1], dy[1], saved[1]}, {layers[2], dy[2], saved[2]}}, x, ctx);
  std::vector<std::vector<double>> all;
  for (size_t i = 0; i < layers.size(); ++i)
    for (const Tensor& result : {y[i], layers[i].adapter->b.grad, layers[i].adapter->a.grad}) all.push_back(to_doubles(result));
  all.push_back(to_doubles(dx));
  return all;
}

struct SharedInput : testing::TestWithParam<DeviceRow> {};
INSTANTIATE_TEST_SUITE_P(Devices, SharedInput, testing::ValuesIn(every_device()), [](const auto& info) { return row_name(info.param); });

// Rank 8 is formed together on a GPU, rank 6 is not; with dropout each layer has a mask of its own.
TEST_P(SharedInput, IsReadByEachLayerAsByItself) {
  const double tolerance = GetParam().dtype == Dtype::f32 ? 1e-5 : 8e-3;
  for (const float dropout : {0.0f, 0.3f})
    for (const int64_t rank : {8, 6}) {
      const auto wanted = shared_input("cpu", Dtype::f32, dropout, rank),
                 got = shared_input(GetParam().device, GetParam().dtype, dropout, rank);
      ASSERT_EQ(got.size(), wanted.size());
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(relative_error(got[i], wanted[i]), tolerance) << "dropout " << dropout << " rank " << rank << " result " << i;
    }
}

}  // namespace
}  // namespace tessera
