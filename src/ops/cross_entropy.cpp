#include "ops/cross_entropy.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

void cross_entropy(Tensor loss, Tensor logits, Tensor labels, float scale) {
  require(computes_in(logits.dtype) && is_vector(loss, Dtype::f32, logits.rows()) && is_vector(labels, Dtype::i32, logits.rows()),
          "cross_entropy", "loss (rows) f32, logits (rows, V) f32 or bf16, labels (rows) i32", {loss, logits, labels});
  if (logits.size()) logits.home->cross_entropy(loss, logits, labels, scale);
}

}  // namespace tessera
