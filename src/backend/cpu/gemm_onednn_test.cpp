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

}  // namespace
}  // namespace tessera
