// The doors to the CUDA backend of this side (CUDA_SIDE: cuda, or cuda_host in tests).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace tessera::CUDA_SIDE {

struct NvmlLibrary;

// threads: of the host, for what the host computes beside. seed: see runtime.h. library: null is the machine's; outlives the backend.
// Throws Error when there is no such GPU.
std::unique_ptr<Backend> make_cuda_backend(int index, int threads, uint64_t seed = 0, const NvmlLibrary* library = nullptr);
int device_count();
std::vector<std::pair<std::string, std::string>> facts();

}  // namespace tessera::CUDA_SIDE
