// Rows of a table by id, and the gradient of that lookup; gather and scatter of rows.
#pragma once
#include "core/tensor.h"

namespace tessera {

void embedding(Tensor out, Tensor table, Tensor ids);             // out (B, T, C) = table (V, C)[ids (B, T) i32]
void embedding_backward(Tensor dtable, Tensor dout, Tensor ids);  // dtable (V, C) f32 +=, tokens in order
void gather_rows(Tensor out, Tensor x, Tensor index);             // out (n, C) = x[index (n) i32]
void scatter_rows(Tensor out, Tensor x, Tensor index);            // out = 0; out[index] = x. REQUIRES: no index twice

}  // namespace tessera
