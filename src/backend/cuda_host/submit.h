// Work of the host device that is no kernel: products.
#pragma once
#include <functional>

#include "backend/cuda/runtime.h"

namespace tessera::cuda_host {

// Runs when the lane comes to it; device memory can be touched then.
void submit(Device&, Lane, std::function<void()> work);

}  // namespace tessera::cuda_host
