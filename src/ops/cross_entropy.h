// Cross-entropy of rows of logits against integer labels, with the gradient in place of the logits.
#pragma once
#include "core/tensor.h"

namespace tessera {

// loss (rows) f32; logits (rows, V) T; labels (rows) i32, all in [0, V). scale != 0: logits = (softmax - onehot) * scale.
void cross_entropy(Tensor loss, Tensor logits, Tensor labels, float scale);

}  // namespace tessera
