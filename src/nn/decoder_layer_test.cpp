#include "nn/decoder_layer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "nn/nn_test.h"
#include "ops/elementwise.h"

namespace tessera {
namespace {

DecoderLayer tiny_layer(NnTest& t, bool trains, bool bias, int64_t rank, int64_t window) {
  DecoderLayer l;
  l.H = 4, l.K = 2, l.D = 6, l.F = 10, l.C = 16;
  l.attention = {1 / std::sqrt(6.f), window};
  l.input_norm = t.param({16}, 1, 1, trains), l.post_norm = t.param({16}, 2, 1, trains);
  l.q = t.linear("self_attn.q_proj", 24, 16, 10, trains, bias, rank), l.k = t.linear("self_attn.k_proj", 12, 16, 20, trains, bias, rank);
  l.v = t.linear("self_attn.v_proj", 12, 16, 30, trains, bias, rank), l.o = t.linear("self_attn.o_proj", 16, 24, 40, trains, bias, rank);
  l.gate = t.linear("mlp.gate_proj", 10, 16, 50, trains, bias, rank), l.up = t.linear("mlp.up_proj", 10, 16, 60, trains, bias, rank);
  l.down = t.linear("mlp.down_proj", 16, 10, 70, trains, bias, rank);
  return l;
}

struct LayerCase {
  const char* name;
  bool trains, bias;
  int64_t rank, window;
};
class LayerGradients : public CasesOnDevices<LayerCase> {};

TEST_P(LayerGradients, MatchFiniteDifferences) {
  const auto& [device, c] = GetParam();
  NnTest t(device);
  const Context ctx = t.context(2, 7, 6);
  DecoderLayer l = tiny_layer(t, c.trains, c.bias, c.rank, c.window);
  const Tensor x = t.memory.random(Dtype::f32, {14, 16}, 3), y = t.memory.zeros(Dtype::f32, {14, 16}),
               dx = t.memory.zeros(Dtype::f32, {14, 16});
  DecoderSaved saved = take_saved(l, {.x = x}, ctx);
  const Trainable trainable(l);
  GradientCheck check;
  check.inputs = trainable.values, check.gradients = trainable.gradients;
  check.inputs.push_back(x), check.gradients.push_back(dx);
  check.out = y;
  check.h = 5e-3f;
  check.tolerance = 4e-3;
  check.forward = [&] { decoder_forward(y, l, saved, ctx); };
  check.backward = [&](Tensor dy) {
    trainable.zero();
    convert(dx, dy);
    decoder_backward(dx, l, saved, ctx);
  };
  expect_gradients(check, t.memory);
}

INSTANTIATE_TEST_SUITE_P(Kinds, LayerGradients,
                         testing::Combine(testing::ValuesIn(f32_devices()),
                                          testing::Values(LayerCase{"full", true, true, 0, 0}, LayerCase{"lora", false, false, 2, 0},
                                                          LayerCase{"lora_window", false, true, 2, 3})),
                         device_case_name<LayerCase>);

class DecoderLayerTest : public OnDevices {};
INSTANTIATE_TEST_SUITE_P(Devices, DecoderLayerTest, testing::ValuesIn(f32_devices()), device_name);

// The recompute of the backward pass fills `saved` as the forward pass does, without forming y.
TEST_P(DecoderLayerTest, RecomputeEqualsForward) {
  NnTest t(GetParam());
  const Context ctx = t.context(2, 5, 6);
  const DecoderLayer l = tiny_layer(t, false, false, 2, 0);
  const Tensor x = t.memory.random(Dtype::f32, {10, 16}, 3), y = t.memory.zeros(Dtype::f32, {10, 16});
  DecoderSaved forward = take_saved(l, {.x = x}, ctx), again = take_saved(l, {.x = x}, ctx);
  decoder_forward(y, l, forward, ctx);
  decoder_recompute(l, again, false, ctx);
  DecoderSaved from_attention = take_saved(l, {x, forward.q, forward.k, forward.v, forward.a, forward.lse, forward.h}, ctx);
  decoder_recompute(l, from_attention, true, ctx);
  for (const DecoderSaved& s : {again, from_attention}) {
    for (const auto member : {&DecoderSaved::n1, &DecoderSaved::q, &DecoderSaved::k, &DecoderSaved::v, &DecoderSaved::a, &DecoderSaved::lse,
                              &DecoderSaved::h, &DecoderSaved::n2, &DecoderSaved::gate, &DecoderSaved::up, &DecoderSaved::s})
      EXPECT_EQ(to_doubles(forward.*member), to_doubles(s.*member));
    for (const auto member : {&DecoderSaved::tq, &DecoderSaved::to, &DecoderSaved::tup, &DecoderSaved::tdown})
      EXPECT_EQ(to_doubles((forward.*member).t), to_doubles((s.*member).t));
  }
}

// Tokens through the cache, one call or several, give what one call over all of them gives.
TEST_P(DecoderLayerTest, CacheEqualsWholeRow) {
  NnTest t(GetParam());
  const DecoderLayer l = tiny_layer(t, false, false, 0, 4);
  Context whole = t.context(1, 9, 6);
  const Tensor x = t.memory.random(Dtype::f32, {9, 16}, 3), y = t.memory.zeros(Dtype::f32, {9, 16}),
               part = t.memory.zeros(Dtype::f32, {9, 16});
  DecoderSaved saved = take_saved(l, {.x = x}, whole);
  decoder_forward(y, l, saved, whole);
  KvCache cache{t.memory.zeros(Dtype::f32, {1, 9, 2, 6}), t.memory.zeros(Dtype::f32, {1, 9, 2, 6}), 0};
  for (const int64_t count : {5, 1, 3}) {
    Context ctx = t.context(1, count, 6);
    ctx.cos = whole.cos, ctx.sin = whole.sin;
    ctx.positions = t.list(Dtype::i32, {1, count}, [&](int64_t i) { return double(cache.length + i); });
    ctx.cache = &cache;
    DecoderSaved s = take_saved(l, {.x = x.rows_from(cache.length, count)}, ctx);
    decoder_forward(part.rows_from(cache.length, count), l, s, ctx);
    cache.length += count;
  }
  expect_close(part, to_doubles(y), 1e-6, "through the cache");
}

}  // namespace
}  // namespace tessera
