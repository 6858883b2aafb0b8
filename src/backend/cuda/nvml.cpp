#include "backend/cuda/nvml.h"

#include <dlfcn.h>

#include "core/text.h"

namespace tessera::CUDA_SIDE {
namespace {

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

NvmlLibrary load() {
  NvmlLibrary l;
  void* const so = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!so) {
    l.missing = dlerror();
    return l;
  }
  const bool all = find(so, "nvmlInit_v2", l.init) && find(so, "nvmlErrorString", l.error_text) &&
                   find(so, "nvmlDeviceGetHandleByPciBusId_v2", l.find_gpu) && find(so, "nvmlDeviceGetMemoryInfo", l.memory);
  find(so, "nvmlDeviceGetComputeRunningProcesses_v3", l.processes);
  if (!all)
    l.missing = "libnvidia-ml.so.1 lacks a function that is needed";
  else if (const int result = l.init(); result != NvmlLibrary::success)
    l.missing = str("nvmlInit: ", l.error_text(result));
  return l;
}

}  // namespace

const NvmlLibrary& nvml() {
  static const NvmlLibrary library = load();
  return library;
}

GpuUse gpu_use(const NvmlLibrary& l, const std::string& bus_address) {
  GpuUse use;
  if (!l.missing.empty()) {
    use.unknown = l.missing;
    return use;
  }
  NvmlLibrary::Gpu gpu = nullptr;
  NvmlLibrary::Memory memory;
  const char* call = "nvmlDeviceGetHandleByPciBusId";
  int result = l.find_gpu(bus_address.c_str(), &gpu);
  if (result == NvmlLibrary::success) call = "nvmlDeviceGetMemoryInfo", result = l.memory(gpu, &memory);
  if (result != NvmlLibrary::success) {
    use.unknown = str(call, " of ", bus_address, ": ", l.error_text(result));
    return use;
  }
  use.bytes = size_t(memory.used);
  // Without room for any it tells how many there are.
  if (l.processes && l.processes(gpu, &use.processes, nullptr) != NvmlLibrary::insufficient_size) use.processes = 0;
  return use;
}

Overhead gained(const GpuUse& before, const GpuUse& now, size_t reserved) {
  for (const GpuUse* use : {&before, &now})
    if (!use->unknown.empty()) return {0, use->unknown};
  if (before.processes > 0 || now.processes > 1) return {0, "other processes use this GPU, and what it gained may be theirs"};
  if (now.bytes <= before.bytes + reserved)
    return {0, str("the GPU held ", human_bytes(before.bytes), " before, and ", human_bytes(now.bytes), " with ", human_bytes(reserved),
                   " that are reserved")};
  return {now.bytes - before.bytes - reserved, ""};
}

}  // namespace tessera::CUDA_SIDE
