#include "ops/embedding.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

void add_shape(Bench& bench, Dtype dtype, int64_t T, int64_t V, int64_t C) {
  const double bytes = double(T * C) * double(size_of(dtype));
  const std::string tail = std::string("/") + short_name(dtype) + "/" + sizes({T, V, C});
  bench.add("embedding" + tail, copying(bytes, bytes), [=](Memory& m) -> Call {
    const Tensor out = m.zeros(dtype, {1, T, C}), table = m.random(dtype, {V, C}), ids = m.ids({1, T}, V);
    return [=] { embedding(out, table, ids); };
  });
  const double sums = double(T * C) * 4;
  bench.add("embedding_backward" + tail, updating(bytes + sums, sums), [=](Memory& m) -> Call {
    const Tensor dtable = m.zeros(Dtype::f32, {V, C}), dout = m.random(dtype, {1, T, C}), ids = m.ids({1, T}, V);
    return [=] { embedding_backward(dtable, dout, ids); };
  });
}

}  // namespace

void add_embedding(Bench& bench) {
  add_shape(bench, Dtype::bf16, 512, 49152, 576);
  add_shape(bench, Dtype::bf16, 2048, 32000, 288);
}

}  // namespace tessera
