#include "ops/cross_entropy.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

// The gradient takes the place of the logits, as in the head. They have to be read twice, because no element of the gradient is known
// before the last logit of its row.
void add_shape(Bench& bench, Dtype dtype, int64_t rows, int64_t V) {
  const double bytes = double(rows * V) * double(size_of(dtype));
  Work work = updating(2 * bytes, bytes);
  work.working_set = size_t(bytes);
  bench.add(std::string("cross_entropy/") + short_name(dtype) + "/" + sizes({rows, V}), work, [=](Memory& m) -> Call {
    const Tensor loss = m.zeros(Dtype::f32, {rows}), logits = m.random(dtype, {rows, V}, 4), labels = m.ids({rows}, V);
    return [=] { cross_entropy(loss, logits, logits, labels, 1); };
  });
}

}  // namespace

void add_cross_entropy(Bench& bench) {
  add_shape(bench, Dtype::bf16, 170, 49152);
  add_shape(bench, Dtype::bf16, 65, 128256);
  add_shape(bench, Dtype::f32, 170, 49152);
}

}  // namespace tessera
