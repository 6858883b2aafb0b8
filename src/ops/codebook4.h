// 4-bit codes with one scale per block of consecutive elements; first element in the high nibble. Rules: backend/backend.h.
#pragma once
#include "core/tensor.h"

namespace tessera {

void codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block);
void codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block);
void nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map);
void nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map);

}  // namespace tessera
