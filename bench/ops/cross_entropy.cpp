#include "ops/cross_entropy.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

// The logits are f32; they have to be read twice, because no element of the gradient is known before the last logit of its row.
void add_shape(Bench& bench, Dtype gradient, int64_t rows, int64_t V) {
  const double numbers = double(rows * V);
  Work work = copying(2 * numbers * 4, numbers * double(size_of(gradient)));
  work.working_set = size_t(numbers) * (4 + size_of(gradient));
  bench.add(std::string("cross_entropy/") + short_name(gradient) + "/" + sizes({rows, V}), work, [=](Memory& m) -> Call {
    const Tensor loss = m.zeros(Dtype::f32, {rows}), logits = m.random(Dtype::f32, {rows, V}, 4), dlogits = m.zeros(gradient, {rows, V}),
                 labels = m.ids({rows}, V);
    return [=] { cross_entropy(loss, dlogits, logits, labels, 1e-3f); };
  });
}

}  // namespace

void add_cross_entropy(Bench& bench) {
  add_shape(bench, Dtype::bf16, 170, 49152);
  add_shape(bench, Dtype::bf16, 65, 128256);
  add_shape(bench, Dtype::f32, 170, 49152);
}

}  // namespace tessera
