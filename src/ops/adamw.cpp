#include "ops/adamw.h"

#include <cassert>

#include "backend/backend.h"

namespace tessera {

void adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep& step) {
  for ([[maybe_unused]] Tensor t : {value, m, v, gradient}) assert(t.dtype == Dtype::f32 && t.size() == value.size());
  assert(copy.empty() || (copy.dtype == Dtype::bf16 && copy.size() == value.size()));
  assert(step.step >= 1);
  if (value.size()) value.home->adamw(value, m, v, gradient, copy, step);
}

void square_sums(Tensor sums, Tensor x) {
  assert(x.dtype == Dtype::f32 && sums.dtype == Dtype::f64 && sums.size() == (x.size() + 63) / 64);
  if (x.size()) x.home->square_sums(sums, x);
}

}  // namespace tessera
