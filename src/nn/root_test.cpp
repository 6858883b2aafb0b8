#include "nn/root.h"

#include <gtest/gtest.h>

#include <cmath>

#include "nn/nn_test.h"

namespace tessera {
namespace {

Root tiny_root(NnTest& t, bool tied, int64_t V = 19) {
  Root r;
  r.C = 8, r.V = V;
  r.embed = t.param({V, 8}, 1, 0.5f, true);
  r.norm = t.param({8}, 2, 1, true);
  if (!tied) r.head = t.param({V, 8}, 3, 0.5f, true);
  return r;
}

// Loss of ids -> embedding -> norm -> head: one number, its gradient through every part.
class RootGradients : public testing::TestWithParam<bool> {};
TEST_P(RootGradients, MatchFiniteDifferences) {
  NnTest t;
  const Context ctx = t.context(2, 6, 4);
  Root root = tiny_root(t, GetParam());
  const Tensor ids = t.memory.ids({2, 6}, 4, 19), x = t.memory.zeros(Dtype::f32, {12, 8}), dx = t.memory.zeros(Dtype::f32, {12, 8}),
               loss = t.memory.zeros(Dtype::f32, {1});
  const std::vector<int32_t> targets{3, -100, 7, 18, -100, 0, -100, -100, 5, 5, 1, -100};
  const Trainable trainable(root);
  GradientCheck check;
  check.inputs = trainable.values, check.gradients = trainable.gradients;
  check.out = loss;
  check.forward = [&] {
    root_embed(x, root, ids);
    loss.as<float>()[0] = float(root_loss(root, x, targets, Tensor{}, 0, ctx));
  };
  check.backward = [&](Tensor dloss) {
    trainable.zero();
    root_embed(x, root, ids);
    root_loss(root, x, targets, dx, dloss.as<float>()[0], ctx);
    root_embed_backward(root, dx, ids);
  };
  expect_gradients(check, t.memory);
}
INSTANTIATE_TEST_SUITE_P(Heads, RootGradients, testing::Bool(), [](const auto& info) { return info.param ? "tied" : "untied"; });

TEST(Root, RowsWithoutTargetGetNoGradient) {
  NnTest t;
  const Context ctx = t.context(1, 4, 4);
  const Root root = tiny_root(t, false);
  const Tensor x = t.memory.random(Dtype::f32, {4, 8}, 5), dx = t.memory.random(Dtype::f32, {4, 8}, 6);
  EXPECT_GT(root_loss(root, x, {-100, 3, -100, 2}, dx, 1, ctx), 0);
  for (const int row : {0, 2})
    for (int c = 0; c < 8; ++c) EXPECT_EQ(dx.as<float>()[row * 8 + c], 0);
  EXPECT_EQ(root_loss(root, x, {-100, -100, -100, -100}, dx, 1, ctx), 0);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(dx.as<float>()[i], 0);
}

// More rows than one chunk of logits: a vocabulary so large that they go in two.
TEST(Root, ChunksAddUp) {
  NnTest t;
  const int64_t V = 140000, rows = 150;
  const Context ctx = t.context(1, rows, 4);
  Root root = tiny_root(t, true, V);
  const Tensor x = t.memory.random(Dtype::f32, {rows, 8}, 5);
  std::vector<int32_t> targets, index;
  for (int32_t i = 0; i < rows; ++i) targets.push_back(i * 900), index.push_back(i);
  const double sum = root_loss(root, x, targets, Tensor{}, 0, ctx);
  double wanted = 0;
  for (int32_t i = 0; i < rows; ++i) {
    std::vector<int32_t> one(size_t(rows), -100);
    one[size_t(i)] = targets[size_t(i)];
    wanted += root_loss(root, x, one, Tensor{}, 0, ctx);
  }
  EXPECT_NEAR(sum, wanted, 1e-6 * wanted);
  const Tensor logits = ctx.arena.take(Dtype::f32, {3, V}, "logits");
  root_logits(logits, root, x, {0, 70, 149}, ctx);
  double z = 0;
  for (int64_t v = 0; v < V; ++v) z += std::exp(double(logits.as<float>()[V + v]));
  std::vector<int32_t> one(size_t(rows), -100);
  one[70] = targets[70];
  EXPECT_NEAR(root_loss(root, x, one, Tensor{}, 0, ctx), std::log(z) - logits.as<float>()[V + targets[70]], 1e-4);
}

}  // namespace
}  // namespace tessera
