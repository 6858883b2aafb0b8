// Kernels that promise the same bits on every instruction set: 4-bit codes and those of their scales, AdamW, sums of squares, conversion
// of f16, normal numbers (which are those of core/rng.h).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/backend.h"
#include "backend/cpu/targets.h"
#include "core/rng.h"
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
  const Tensor copy = memory.zeros(Dtype::bf16, {n});
  AdamwStep step;
  step.lr = 0.01f;
  for (step.step = 1; step.step <= 3; ++step.step) backend.adamw(p, m, v, g, copy, step);
  backend.square_sums(sums, g);
  for (Tensor t : {p, m, v, copy, sums}) append(out, t);
}

void nested(Bytes& out, Backend& backend) {
  TestMemory memory(backend, size_t(4) << 20);
  std::vector<float> map(256);
  for (int i = 0; i < 256; ++i) map[size_t(i)] = float(i - 127) * std::abs(float(i - 127)) / 16384;
  const int64_t n = 256 * 9 + 77;
  const Tensor q = memory.zeros(Dtype::u8, {n}), scale = memory.zeros(Dtype::f32, {10});
  backend.nested_encode(q, scale, awkward(memory, Dtype::f32, n), 0.25f, map.data());
  append(out, q);
  append(out, scale);
}

void normals(Bytes& out, Backend& backend) {
  TestMemory memory(backend, size_t(4) << 20);
  const Rng rng(9, Purpose::init, "targets");
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const int64_t n = 40007, begin = (int64_t(1) << 33) + 3;
    const Tensor x = memory.zeros(dtype, {n});
    backend.random_normal(x, rng.key(), uint64_t(begin), 0.02f);
    append(out, x);
    for (int64_t i = 0; i < n; i += dtype == Dtype::f32 ? 1 : 37) {
      const float expected = 0.02f * rng.normal(uint64_t(begin + i));
      ASSERT_EQ(dtype == Dtype::f32 ? x.as<float>()[i] : float(x.as<Bf16>()[i]), dtype == Dtype::f32 ? expected : float(Bf16(expected)))
          << i;
    }
  }
}

// Every f16 there is, as float and as bf16. A NaN stays one, with its sign.
void halves(Bytes& out, Backend& backend) {
  TestMemory memory(backend, size_t(4) << 20);
  const Tensor x = memory.zeros(Dtype::f16, {65536});
  for (int i = 0; i < 65536; ++i) x.as<F16>()[i].bits = uint16_t(i);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor y = memory.zeros(dtype, {65536});
    backend.convert(y, x);
    append(out, y);
    for (int i = 0; i < 65536; ++i) {
      const float expected = float(x.as<F16>()[i]), got = dtype == Dtype::f32 ? y.as<float>()[i] : float(y.as<Bf16>()[i]);
      ASSERT_EQ(std::isnan(got), std::isnan(expected)) << i;
      ASSERT_EQ(std::signbit(got), std::signbit(expected)) << i;
      if (std::isnan(expected)) continue;
      ASSERT_EQ(got, dtype == Dtype::f32 ? expected : float(Bf16(expected))) << i;
    }
  }
}

Bytes results() {
  Bytes out;
  const auto backend = make_backend("cpu", 1);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (const int64_t block : {32, 64, 4096}) codes(out, *backend, dtype, block);
  adamw(out, *backend);
  nested(out, *backend);
  normals(out, *backend);
  halves(out, *backend);
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
