#include <gtest/gtest.h>

#include "backend/cpu/cpu.h"
#include "testing/gradients.h"

namespace tessera {
namespace {

// Both engines form the same products, within rounding: several terms, codes, a bias, an addend, every transposition.
TEST(ProductEngines, Agree) {
  CpuBackend panels(2, ProductEngine::panels), onednn(2, ProductEngine::onednn);
  float table[16], map[256];
  for (int i = 0; i < 16; ++i) table[i] = float(i - 8) / 8;
  for (int i = 0; i < 256; ++i) map[i] = float(i) / 256;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const int way : {0, 1, 2, 3}) {
      TestMemory m(panels);
      const bool ta = way & 1, tb = way & 2;
      Codes4 w;
      w.rows = tb ? 96 : 64, w.cols = tb ? 64 : 96, w.table = table, w.map = map;
      w.codes = m.zeros(Dtype::u8, {96 * 64 / 2}), w.absmax = m.zeros(Dtype::u8, {96});
      for (int64_t i = 0; i < w.codes.size(); ++i) w.codes.as<uint8_t>()[i] = uint8_t(i * 29);
      for (int64_t i = 0; i < 96; ++i) w.absmax.as<uint8_t>()[i] = uint8_t(i * 2);
      w.nested_absmax = m.random(Dtype::f32, {1}, 1), w.nested_offset = m.random(Dtype::f32, {1}, 2);
      Product p;
      p.transpose_a = ta, p.transpose_b = tb, p.alpha = 0.5f;
      p.add(m.random(dtype, ta ? Shape{64, 50} : Shape{50, 64}, 3), w);
      p.add(m.random(dtype, ta ? Shape{16, 50} : Shape{50, 16}, 4), m.random(dtype, tb ? Shape{96, 16} : Shape{16, 96}, 5));
      p.bias = m.random(dtype, {96}, 6);
      std::vector<Tensor> results;
      for (CpuBackend* engine : {&panels, &onednn}) {
        p.c = p.addend = m.random(dtype, {50, 96}, 7);
        engine->gemm(p);
        results.push_back(p.c);
      }
      expect_close(results[1], to_doubles(results[0]), dtype == Dtype::f32 ? 1e-6 : 1e-2, "oneDNN");
    }
}

// What is added in 16 bits to sums in f32, onto c or not.
TEST(ProductEngines, TakeABiasAndAnAddendOfAnotherDtype) {
  CpuBackend panels(2, ProductEngine::panels), onednn(2, ProductEngine::onednn);
  TestMemory m(panels);
  for (const bool accumulates : {false, true}) {
    Product p;
    p.transpose_b = true, p.accumulate = accumulates;
    p.add(m.random(Dtype::bf16, {20, 40}, 1), m.random(Dtype::bf16, {24, 40}, 2));
    p.bias = m.random(Dtype::bf16, {24}, 3), p.addend = m.random(Dtype::bf16, {20, 24}, 4);
    std::vector<Tensor> results;
    for (CpuBackend* engine : {&panels, &onednn}) {
      p.c = m.random(Dtype::f32, {20, 24}, 5);
      engine->gemm(p);
      results.push_back(p.c);
    }
    expect_close(results[1], to_doubles(results[0]), 1e-6, accumulates ? "onto c" : "alone");
  }
}

// c is rounded after each term: the narrow one goes first, wherever it stands, and costs no second rounding of the whole.
TEST(ProductEngines, AddAnAdapterBeforeTheLargeTerm) {
  CpuBackend onednn(2, ProductEngine::onednn);
  TestMemory m(onednn);
  Product p;
  p.transpose_b = true;
  p.add(m.random(Dtype::bf16, {40, 256}, 1), m.random(Dtype::bf16, {64, 256}, 2));
  p.add(m.random(Dtype::bf16, {40, 8}, 3), m.random(Dtype::bf16, {64, 8}, 4, 0.1f));
  p.c = m.zeros(Dtype::f32, {40, 64});
  onednn.gemm(p);
  const std::vector<double> wanted = to_doubles(p.c);
  p.c = m.zeros(Dtype::bf16, {40, 64});
  onednn.gemm(p);
  const Tensor rounded = m.of(Dtype::bf16, {40, 64}, wanted);
  EXPECT_LE(relative_error(to_doubles(p.c), wanted), 1.1 * relative_error(to_doubles(rounded), wanted));
}

}  // namespace
}  // namespace tessera
