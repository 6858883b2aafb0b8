// Causal grouped-query attention without ever holding the score matrix (as FlashAttention, Dao et al. 2022): O(T) memory.
// Shapes and masks: backend/backend.h, Backend::attention.
#pragma once
#include "core/kernel_options.h"
#include "core/tensor.h"

namespace tessera {

void attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape);
void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts,
                        AttentionShape);

}  // namespace tessera
