#include "nn/root.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

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

// Those of the rows of `targets` that are not -100.
Targets targets_of(NnTest& t, const std::vector<int32_t>& targets) {
  std::vector<double> rows, labels;
  for (size_t i = 0; i < targets.size(); ++i)
    if (targets[i] >= 0) rows.push_back(double(i)), labels.push_back(targets[i]);
  const Shape shape{int64_t(rows.size())};
  return {t.memory.of(Dtype::i32, shape, rows), t.memory.of(Dtype::i32, shape, labels)};
}

double loss_of(const Root& root, Tensor x, const Targets& targets, Tensor dx, float scale, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  const Tensor losses = ctx.arena.take(Dtype::f32, {targets.rows.size()}, "losses");
  root_loss(losses, root, x, targets, dx, scale, ctx);
  const std::vector<double> rows = to_doubles(losses);
  return std::accumulate(rows.begin(), rows.end(), 0.0);
}

struct HeadCase {
  const char* name;
  bool tied;
};
// Losses of ids -> embedding -> norm -> head: their sum, and its gradient through every part.
class RootGradients : public CasesOnDevices<HeadCase> {};
TEST_P(RootGradients, MatchFiniteDifferences) {
  const auto& [device, c] = GetParam();
  NnTest t(device);
  const Context ctx = t.context(2, 6, 4);
  Root root = tiny_root(t, c.tied);
  const Tensor ids = t.memory.ids({2, 6}, 4, 19), x = t.memory.zeros(Dtype::f32, {12, 8}), dx = t.memory.zeros(Dtype::f32, {12, 8}),
               loss = t.memory.zeros(Dtype::f32, {1});
  const Targets targets = targets_of(t, {3, -100, 7, 18, -100, 0, -100, -100, 5, 5, 1, -100});
  const Trainable trainable(root);
  GradientCheck check;
  check.inputs = trainable.values, check.gradients = trainable.gradients;
  check.out = loss;
  check.forward = [&] {
    root_embed(x, root, ids);
    const auto sum = float(loss_of(root, x, targets, Tensor{}, 0, ctx));
    t.backend->copy(loss.data, &sum, sizeof sum);
  };
  check.backward = [&](Tensor dloss) {
    trainable.zero();
    root_embed(x, root, ids);
    loss_of(root, x, targets, dx, float(to_doubles(dloss)[0]), ctx);
    root_embed_backward(root, dx, ids);
  };
  expect_gradients(check, t.memory);
}
INSTANTIATE_TEST_SUITE_P(Heads, RootGradients,
                         testing::Combine(testing::ValuesIn(f32_devices()),
                                          testing::Values(HeadCase{"untied", false}, HeadCase{"tied", true})),
                         device_case_name<HeadCase>);

class RootTest : public OnDevices {};
INSTANTIATE_TEST_SUITE_P(Devices, RootTest, testing::ValuesIn(f32_devices()), device_name);

TEST_P(RootTest, RowsWithoutTargetGetNoGradient) {
  NnTest t(GetParam());
  const Context ctx = t.context(1, 4, 4);
  const Root root = tiny_root(t, false);
  const Tensor x = t.memory.random(Dtype::f32, {4, 8}, 5), dx = t.memory.random(Dtype::f32, {4, 8}, 6);
  EXPECT_GT(loss_of(root, x, targets_of(t, {-100, 3, -100, 2}), dx, 1, ctx), 0);
  const std::vector<double> gradient = to_doubles(dx);
  for (const size_t row : {0, 2})
    for (size_t c = 0; c < 8; ++c) EXPECT_EQ(gradient[row * 8 + c], 0);
  EXPECT_EQ(loss_of(root, x, targets_of(t, {-100, -100, -100, -100}), dx, 1, ctx), 0);
  EXPECT_EQ(to_doubles(dx), std::vector<double>(32, 0));
}

// More rows than one chunk of logits: a vocabulary so large that they go in two.
TEST(Root, ChunksAddUp) {
  NnTest t("cpu", size_t(256) << 20);
  const int64_t V = 140000, rows = 150;
  const Context ctx = t.context(1, rows, 4);
  Root root = tiny_root(t, true, V);
  const Tensor x = t.memory.random(Dtype::f32, {rows, 8}, 5), losses = t.memory.zeros(Dtype::f32, {rows});
  std::vector<int32_t> targets;
  for (int32_t i = 0; i < rows; ++i) targets.push_back(i * 900);
  root_loss(losses, root, x, targets_of(t, targets), Tensor{}, 0, ctx);
  const std::vector<double> together = to_doubles(losses);
  for (size_t i = 0; i < size_t(rows); ++i) {
    std::vector<int32_t> one(size_t(rows), -100);
    one[i] = targets[i];
    EXPECT_NEAR(together[i], loss_of(root, x, targets_of(t, one), Tensor{}, 0, ctx), 1e-6 * together[i]);
  }
  const Tensor logits = ctx.arena.take(Dtype::f32, {3, V}, "logits");
  root_logits(logits, root, x, t.memory.of(Dtype::i32, {3}, {0, 70, 149}), ctx);
  const std::vector<double> of_row = to_doubles(logits.rows_from(1, 1));
  double z = 0;
  for (const double v : of_row) z += std::exp(v);
  EXPECT_NEAR(together[70], std::log(z) - of_row[size_t(targets[70])], 1e-4);
}

}  // namespace
}  // namespace tessera
