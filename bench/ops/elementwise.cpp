#include "ops/elementwise.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

void add_shape(Bench& bench, int64_t rows, int64_t cols) {
  const Shape shape{rows, cols};
  const double two = double(rows * cols) * 2, four = 2 * two;
  const std::string tail = "/" + sizes({rows, cols});
  bench.add("convert/f32_to_bf16" + tail, copying(four, two), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(Dtype::bf16, shape), x = m.random(Dtype::f32, shape);
    return [=] { convert(out, x); };
  });
  bench.add("convert/bf16_to_f32" + tail, copying(two, four), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(Dtype::f32, shape), x = m.random(Dtype::bf16, shape);
    return [=] { convert(out, x); };
  });
  bench.add("add/bf16" + tail, copying(2 * two, two), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(Dtype::bf16, shape), x = m.random(Dtype::bf16, shape), y = m.random(Dtype::bf16, shape);
    return [=] { add(out, x, y); };
  });
  bench.add("accumulate/bf16" + tail, updating(two + four, four), [=](Memory& m) -> Call {
    const Tensor sum = m.zeros(Dtype::f32, shape), x = m.random(Dtype::bf16, shape);
    return [=] { accumulate(sum, x); };
  });
}

}  // namespace

void add_elementwise(Bench& bench) {
  add_shape(bench, 512, 576);
  add_shape(bench, 512, 8192);
  const Shape shape{1, 512, 576};
  const double bytes = double(shape.size()) * 2;
  bench.add("random_normal/bf16/512x576", copying(0, bytes), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(Dtype::bf16, {shape.size()});
    return [=, &backend = m.backend()] { backend.random_normal(out, 7, 0, 0.02f); };
  });
  bench.add("dropout/bf16/512x576", copying(bytes, bytes), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(Dtype::bf16, shape), x = m.random(Dtype::bf16, shape), keys = m.zeros(Dtype::i64, {1});
    return [=] { dropout(out, x, keys, 7, 0.1f); };
  });
}

}  // namespace tessera
