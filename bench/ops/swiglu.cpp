#include "ops/swiglu.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

void add_shape(Bench& bench, Dtype dtype, int64_t rows, int64_t F) {
  const double bytes = double(rows * F) * double(size_of(dtype));
  const std::string tail = std::string("/") + short_name(dtype) + "/" + sizes({rows, F});
  bench.add("swiglu" + tail, copying(2 * bytes, bytes), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(dtype, {rows, F}), gate = m.random(dtype, {rows, F}, 4), up = m.random(dtype, {rows, F});
    return [=] { swiglu(out, gate, up); };
  });
  bench.add("swiglu_backward" + tail, copying(3 * bytes, 2 * bytes), [=](Memory& m) -> Call {
    const Tensor dgate = m.zeros(dtype, {rows, F}), dup = m.zeros(dtype, {rows, F}), dout = m.random(dtype, {rows, F}),
                 gate = m.random(dtype, {rows, F}, 4), up = m.random(dtype, {rows, F});
    return [=] { swiglu_backward(dgate, dup, dout, gate, up); };
  });
}

}  // namespace

void add_swiglu(Bench& bench) {
  add_shape(bench, Dtype::bf16, 512, 1536);
  add_shape(bench, Dtype::bf16, 512, 8192);
  add_shape(bench, Dtype::f32, 512, 1536);
}

}  // namespace tessera
