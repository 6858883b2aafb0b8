#include "ops/rmsnorm.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

void add_shape(Bench& bench, Dtype dtype, int64_t rows, int64_t C) {
  const double bytes = double(rows * C) * double(size_of(dtype));
  const std::string tail = std::string("/") + short_name(dtype) + "/" + sizes({rows, C});
  bench.add("rmsnorm" + tail, copying(bytes, bytes), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(dtype, {rows, C}), rstd = m.zeros(Dtype::f32, {rows}), x = m.random(dtype, {rows, C}),
                 w = m.random(dtype, {C});
    return [=] { rmsnorm(out, rstd, x, w, 1e-5f); };
  });
  // As in a layer: onto the residual stream's gradient, which is read too.
  bench.add("rmsnorm_backward" + tail, updating(3 * bytes, bytes), [=](Memory& m) -> Call {
    const Tensor dx = m.zeros(dtype, {rows, C}), dy = m.random(dtype, {rows, C}), x = m.random(dtype, {rows, C}), w = m.random(dtype, {C}),
                 rstd = m.zeros(Dtype::f32, {rows}), out = m.zeros(dtype, {rows, C});
    rmsnorm(out, rstd, x, w, 1e-5f);
    return [=] { rmsnorm_backward(dx, {}, dy, x, w, rstd, true); };
  });
}

}  // namespace

void add_rmsnorm(Bench& bench) {
  add_shape(bench, Dtype::bf16, 512, 576);
  add_shape(bench, Dtype::bf16, 2048, 576);
  add_shape(bench, Dtype::bf16, 512, 2048);
  add_shape(bench, Dtype::f32, 512, 576);
}

}  // namespace tessera
