// Devices of tests: those of make_backend, and cuda_host (kernels of the GPU on the host). For *_test.cpp only.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "backend/backend.h"

namespace tessera {

// "cpu", "cuda_host" or "cuda". seed: of the order in which cuda_host runs its lanes and threads.
std::unique_ptr<Backend> make_test_backend(std::string_view device, int threads, uint64_t seed = 1);
// cpu, cuda_host, and cuda where there is a GPU.
std::vector<const char*> test_devices();

}  // namespace tessera
