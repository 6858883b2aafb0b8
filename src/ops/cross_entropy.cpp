#include "ops/cross_entropy.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

void cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) {
  require(computes_in(logits.dtype) && is_vector(loss, Dtype::f32, logits.rows()) && is_vector(labels, Dtype::i32, logits.rows()) &&
              (gradient.empty() || (computes_in(gradient.dtype) && gradient.rows() == logits.rows() && gradient.cols() == logits.cols())),
          "cross_entropy", "loss (rows) f32, gradient and logits (rows, V) f32 or bf16, labels (rows) i32",
          {loss, gradient, logits, labels});
  if (logits.size()) logits.home->cross_entropy(loss, gradient, logits, labels, scale);
}

}  // namespace tessera
