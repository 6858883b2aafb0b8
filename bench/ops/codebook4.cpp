// 4-bit codes of one matrix: made when a model is loaded, decoded where no product does it on the way.
#include "ops/codebook4.h"

#include "bench/ops/bench.h"
#include "quant/format.h"

namespace tessera {
namespace {

void add_shape(Bench& bench, Dtype dtype, int64_t rows, int64_t cols) {
  const int64_t n = rows * cols, blocks = n / block4;
  const double values = double(n) * double(size_of(dtype)), codes = double(n) / 2 + double(blocks) * 4;
  const std::string tail = std::string("/") + short_name(dtype) + "/" + sizes({rows, cols});
  bench.add("codebook4_encode" + tail, copying(values, codes), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(Dtype::u8, {n / 2}), absmax = m.zeros(Dtype::f32, {blocks}), x = m.random(dtype, {n}, 0.02f);
    return [=] { codebook4_encode(out, absmax, x, nf4_table(), block4); };
  });
  bench.add("codebook4_decode" + tail, copying(codes, values), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(dtype, {n}), packed = m.random(Dtype::u8, {n / 2}), absmax = m.random(Dtype::f32, {blocks}, 0.05f);
    return [=] { codebook4_decode(out, packed, absmax, nf4_table(), block4); };
  });
}

}  // namespace

void add_codebook4(Bench& bench) {
  add_shape(bench, Dtype::bf16, 1536, 576);
  add_shape(bench, Dtype::bf16, 8192, 2048);
  add_shape(bench, Dtype::f32, 1536, 576);
}

}  // namespace tessera
