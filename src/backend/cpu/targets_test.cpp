// Kernels that promise the same bits on every instruction set: 4-bit codes, AdamW, sums of squares.
#include <gtest/gtest.h>

#include <cstring>

#include "backend/backend.h"
#include "backend/cpu/targets.h"
#include "hwy/highway.h"
#include "testing/gradients.h"

namespace tessera {
namespace {

constexpr float table[16] = {-1.0f, -0.7f, -0.53f, -0.4f, -0.28f, -0.18f, -0.09f, 0.0f,
                             0.08f, 0.16f, 0.25f,  0.34f, 0.44f,  0.56f,  0.72f,  1.0f};

using Bytes = std::vector<uint8_t>;
void append(Bytes& out, Tensor t) { out.insert(out.end(), t.as<uint8_t>(), t.as<uint8_t>() + t.bytes()); }

// x with numbers that are awkward: a zero block, denormals, infinity, NaN.
Tensor awkward(TestMemory& memory, Dtype dtype, int64_t n) {
  std::vector<double> values = to_doubles(memory.random(Dtype::f32, {n}, 5));
  std::fill(values.begin() + 64, values.begin() + 128, 0.0);
  for (int i = 128; i < 192; ++i) values[i] *= 1e-40;
  values[200] = INFINITY;
  values[300] = NAN;
  return memory.of(dtype, {n}, values);
}

void codes(Bytes& out, Backend& backend, Dtype dtype, int64_t block) {
  TestMemory memory(backend, size_t(4) << 20);
  const int64_t n = 64 * 50 + 13;
  const Tensor x = awkward(memory, dtype, n), codes = memory.zeros(Dtype::u8, {(n + 1) / 2});
  const Tensor absmax = memory.zeros(Dtype::f32, {(n + block - 1) / block});
  backend.codebook4_encode(codes, absmax, x, table, block);
  append(out, codes);
  append(out, absmax);
  for (const Dtype to : {Dtype::f32, Dtype::bf16}) {
    const Tensor y = memory.zeros(to, {n});
    backend.codebook4_decode(y, codes, absmax, table, block);
    append(out, y);
  }
}

void adamw(Bytes& out, Backend& backend) {
  TestMemory memory(backend, size_t(4) << 20);
  const int64_t n = 40001;
  const Tensor p = memory.random(Dtype::f32, {n}, 1), m = memory.zeros(Dtype::f32, {n}), v = memory.zeros(Dtype::f32, {n});
  const Tensor g = memory.random(Dtype::f32, {n}, 2), sums = memory.zeros(Dtype::f64, {(n + 63) / 64});
  AdamwStep step;
  step.lr = 0.01f;
  for (step.step = 1; step.step <= 3; ++step.step) backend.adamw(p, m, v, g, step);
  backend.square_sums(sums, g);
  for (Tensor t : {p, m, v, sums}) append(out, t);
}

Bytes results() {
  Bytes out;
  const auto backend = make_backend("cpu", 1);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (const int64_t block : {32, 64, 4096}) codes(out, *backend, dtype, block);
  adamw(out, *backend);
  return out;
}

TEST(Targets, SameBits) {
  const Bytes best = results();
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    EXPECT_TRUE(results() == best) << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace
}  // namespace tessera
