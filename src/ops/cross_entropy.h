// Cross-entropy of rows of logits against integer labels, with the gradient, in place or beside.
#pragma once
#include "core/tensor.h"

namespace tessera {

// loss (rows) f32; logits (rows, V) T; labels (rows) i32, all in [0, V). gradient = (softmax - onehot) * scale unless it is empty; it may
// be logits, or another (rows, V) tensor, f32 or bf16.
void cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale);

}  // namespace tessera
