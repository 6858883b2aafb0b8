// NVML: what a GPU holds, also before this process has a context on it. Found in the driver's libnvidia-ml.so.1 when first needed; the few
// types are those of nvml.h; a test may give other functions.
#pragma once
#include <cstddef>
#include <string>

#include "backend/backend.h"

namespace tessera::CUDA_SIDE {

struct NvmlLibrary {
  using Gpu = void*;  // nvmlDevice_t
  struct Memory {     // nvmlMemory_t, bytes
    unsigned long long total = 0, free = 0, used = 0;
  };
  enum Result : int { success = 0, insufficient_size = 7 };  // nvmlReturn_t; all others are errors

  int (*init)() = nullptr;                                       // nvmlInit_v2
  const char* (*error_text)(int) = nullptr;                      // nvmlErrorString
  int (*find_gpu)(const char* bus_address, Gpu*) = nullptr;      // nvmlDeviceGetHandleByPciBusId_v2
  int (*memory)(Gpu, Memory*) = nullptr;                         // nvmlDeviceGetMemoryInfo
  int (*processes)(Gpu, unsigned* count, void* none) = nullptr;  // nvmlDeviceGetComputeRunningProcesses_v3, for their number; may be absent
  std::string missing;                                           // not empty: the library cannot be used
};

// Loaded once, never closed. From any thread.
const NvmlLibrary& nvml();

// What a GPU holds, for whom ever.
struct GpuUse {
  size_t bytes = 0;
  unsigned processes = 0;  // that have a context on it; 0 also where they are not shown
  std::string unknown;     // not empty: why nothing is known
};
GpuUse gpu_use(const NvmlLibrary&, const std::string& bus_address);

// Of what the GPU has gained since this process had no context on it, all that the process has not reserved.
Overhead gained(const GpuUse& before, const GpuUse& now, size_t reserved);

}  // namespace tessera::CUDA_SIDE
