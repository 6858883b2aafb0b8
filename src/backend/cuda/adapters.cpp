// Adapters: by kernels that read or write the wide matrix once, where the sizes are right for them.
#include "backend/cuda/adapters.h"

#include "backend/cuda/cuda.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {

bool CudaBackend::drops_inside(std::span<const AdapterProduct> all) const { return joins_adapters(all); }

void CudaBackend::adapters(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  if (!joins_adapters(all)) return Backend::adapters(all, x, room);
  adapters_forward(*device_, all, x, reinterpret_cast<float*>(scratch(adapter_scratch(all))));
}

void CudaBackend::adapters_backward(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  if (!joins_adapters(all)) return Backend::adapters_backward(all, x, room);
  adapters_weight_gradient(*device_, all, x, reinterpret_cast<float*>(scratch(adapter_backward_scratch(all))));
}

void CudaBackend::adapters_input_gradient(Tensor dx, std::span<const AdapterProduct> all, Tensor room) {
  if (!joins_adapters(all)) return Backend::adapters_input_gradient(dx, all, room);
  adapters_sum(*device_, dx, all, 1, 1, dx.data);
}

}  // namespace tessera::CUDA_SIDE
