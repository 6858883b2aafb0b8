// NVML that tells what a test says. One at a time. For *_test.cpp only.
#pragma once
#include "backend/cuda/nvml.h"

namespace tessera {

struct FakeNvml {
  using Library = CUDA_SIDE::NvmlLibrary;
  FakeNvml() { now() = this; }
  ~FakeNvml() { now() = nullptr; }
  FakeNvml(const FakeNvml&) = delete;
  FakeNvml& operator=(const FakeNvml&) = delete;

  static Library library() {
    Library l;
    l.init = [] { return int(Library::success); };
    l.error_text = [](int) { return "GPU is lost"; };
    l.find_gpu = [](const char*, Library::Gpu* gpu) { return *gpu = now(), now()->find_result; };
    l.memory = [](Library::Gpu, Library::Memory* m) { return m->used = now()->used + more(), now()->memory_result; };
    l.processes = [](Library::Gpu, unsigned* count, void*) {
      *count = now()->processes;
      return now()->processes_result ? now()->processes_result : now()->processes ? int(Library::insufficient_size) : int(Library::success);
    };
    return l;
  }

  static unsigned long long& more() {  // bytes used, of the GPU of the calling thread's rank
    static thread_local unsigned long long bytes = 0;
    return bytes;
  }
  unsigned long long used = 0;
  unsigned processes = 0;
  int find_result = 0, memory_result = 0, processes_result = 0;

 private:
  static FakeNvml*& now() {
    static FakeNvml* one = nullptr;
    return one;
  }
};

}  // namespace tessera
