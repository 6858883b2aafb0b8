// The 4-bit codes of a whole matrix written out as numbers.
#pragma once
#include "backend/cuda/runtime.h"
#include "core/product.h"

namespace tessera::CUDA_SIDE {

// out (rows, cols) f32, bf16 or f16. Scales that are codes are decoded on the way.
void decode_codes4(Device&, Tensor out, const Codes4&);

}  // namespace tessera::CUDA_SIDE
