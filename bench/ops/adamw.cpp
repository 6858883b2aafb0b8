// The optimizer's passes over flat f32 arrays: the adapters of a layer of 135M, the layer itself, its embedding. The compute copy is bf16.
#include "ops/adamw.h"

#include "bench/ops/bench.h"

namespace tessera {

void add_adamw(Bench& bench) {
  for (const int64_t n : {int64_t(81408), int64_t(3538944), int64_t(28311552)}) {
    const double bytes = double(n) * 4;
    bench.add("adamw/f32/" + sizes({n}), updating(4 * bytes, 3.5 * bytes), [=](Memory& m) -> Call {
      const Tensor value = m.random(Dtype::f32, {n}), first = m.zeros(Dtype::f32, {n}), second = m.zeros(Dtype::f32, {n}),
                   gradient = m.random(Dtype::f32, {n}, 1e-3f), copy = m.zeros(Dtype::bf16, {n});
      AdamwStep step;
      step.lr = 1e-4;
      return [=]() mutable { adamw(value, first, second, gradient, copy, step), ++step.step; };
    });
    bench.add("square_sums/f32/" + sizes({n}), reading(bytes), [=](Memory& m) -> Call {
      const Tensor sums = m.zeros(Dtype::f64, {(n + 63) / 64}), x = m.random(Dtype::f32, {n});
      return [=] { square_sums(sums, x); };
    });
  }
}

}  // namespace tessera
