// The kernels beside the library's that products need.
#pragma once
#include "backend/cuda/runtime.h"
#include "core/product.h"

namespace tessera::CUDA_SIDE {

// The whole product. REQUIRES: is_fused_product(p) (backend/device_scratch.h).
void fused_product(Device&, const Product& p);

// c += bias + addend; either may be empty, and of another dtype than c.
void add_to_product(Device&, Tensor c, Tensor bias, Tensor addend);

}  // namespace tessera::CUDA_SIDE
