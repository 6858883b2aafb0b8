// Kernels for what the adapters of layers with one input do (core/adapter_product.h): the wide matrix is read or written once for several.
// REQUIRES of all: joins_adapters() (backend/device_scratch.h).
#pragma once
#include <span>

#include "backend/cuda/runtime.h"
#include "core/adapter_product.h"

namespace tessera::CUDA_SIDE {

// t = scale * drop(x) a^T. parts: adapter_scratch() bytes.
void adapters_forward(Device&, std::span<const AdapterProduct>, Tensor x, float* parts);
// da += t^T drop(x). parts: adapter_backward_scratch() bytes.
void adapters_weight_gradient(Device&, std::span<const AdapterProduct>, Tensor x, float* parts);
// c (m, k) = alpha * sum of drop(t a) + beta * add, summed in f32 and rounded once; add (m, k) as c, read unless beta is 0; may be c.
void adapters_sum(Device&, Tensor c, std::span<const AdapterProduct>, float alpha, float beta, const void* add);

}  // namespace tessera::CUDA_SIDE
