#include <gtest/gtest.h>

#include "backend/backend.h"
#include "backend/cpu/targets.h"
#include "hwy/highway.h"
#include "testing/gradients.h"

namespace tessera {
namespace {

// out, lse, dq, dk, dv of one problem with every kind of limit.
std::vector<std::vector<double>> results(Backend& backend, Dtype dtype, int64_t width) {
  TestMemory memory(backend);
  const Shape q_shape = {2, 150, 6, width}, k_shape = {2, 150, 2, width};
  const auto random = [&](Shape shape, uint64_t seed) { return memory.random(dtype, shape, seed); };
  const Tensor q = random(q_shape, 1), k = random(k_shape, 2), v = random(k_shape, 3), dout = random(q_shape, 4);
  std::vector<double> first(300);
  for (size_t i = 0; i < 300; ++i) first[i] = i % 150 < 60 ? 0 : 60;
  const Tensor starts = memory.of(Dtype::i32, {2, 150}, first), lse = memory.zeros(Dtype::f32, {2, 6, 150});
  const Tensor out = memory.zeros(dtype, q_shape), dq = memory.zeros(dtype, q_shape);
  const Tensor dk = memory.zeros(dtype, k_shape), dv = memory.zeros(dtype, k_shape);
  backend.attention(out, lse, q, k, v, starts, {0.25f, 70});
  backend.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, starts, {0.25f, 70});
  return {to_doubles(out), to_doubles(lse), to_doubles(dq), to_doubles(dk), to_doubles(dv)};
}

void expect_agreement(Dtype dtype, int64_t width, double tolerance) {
  const auto backend = make_backend("cpu", 1);
  std::vector<std::vector<double>> best;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    const auto values = results(*backend, dtype, width);
    if (best.empty()) best = values;
    for (size_t i = 0; i < best.size(); ++i)
      EXPECT_LE(relative_error(values[i], best[i]), tolerance) << hwy::TargetName(target) << " " << i;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

TEST(AttentionTargets, AgreeWithEachOther) {
  for (const int64_t width : {18, 64, 80, 112}) expect_agreement(Dtype::f32, width, 1e-5);
}

// Where the processor multiplies pairs of bf16 the best target does so, and the others multiply the same numbers as f32.
TEST(AttentionTargets, PairsOfBf16AgreeWithF32) {
  for (const int64_t width : {18, 33, 64, 80, 96, 128, 256}) expect_agreement(Dtype::bf16, width, 1e-2);
}

}  // namespace
}  // namespace tessera
