#include "backend/cuda/cuda.h"

#include <algorithm>

#include "backend/cuda/make.h"
#include "backend/device_scratch.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera::CUDA_SIDE {

namespace {
GpuUse use_before(const NvmlLibrary& nvml, int index, const std::string& bus_address) {
  if (is_in_use(index)) return {.unknown = "this process has used the GPU before"};
  return gpu_use(nvml, bus_address);
}
}  // namespace

CudaBackend::CudaBackend(int index, int threads, uint64_t seed, const NvmlLibrary& nvml)
    : nvml_(nvml),
      bus_address_(bus_address(index)),
      before_(use_before(nvml, index, bus_address_)),
      device_(open_device(index, seed)),
      threads_(threads) {}
CudaBackend::~CudaBackend() = default;

std::string CudaBackend::describe() const { return CUDA_SIDE::describe(*device_); }
size_t CudaBackend::total_memory() const { return CUDA_SIDE::total_memory(*device_); }
size_t CudaBackend::free_memory() const { return CUDA_SIDE::free_memory(*device_); }

// What is loaded when it is first used: the library of products, and modules of kernels.
void CudaBackend::run_a_little() {
  constexpr int64_t n = 64;
  const size_t bytes = n * n * sizeof(float);
  const Buffer room = reserve(3 * bytes + matmul_workspace, "measuring the device");
  std::byte* const at = room.data() + matmul_workspace;
  const auto matrix = [&](int i, Dtype dtype) { return Tensor{at + size_t(i) * bytes, dtype, {n, n}, this}; };
  convert(matrix(1, Dtype::bf16), matrix(0, Dtype::f32));
  if (!matmuls_) matmuls_ = open_matmuls();
  const MatmulShape shape{.m = n, .n = n, .k = n, .in = Dtype::bf16, .out = Dtype::bf16};
  matmul(*device_, *matmuls_, {.shape = shape, .a = matrix(1, Dtype::bf16).data, .b = matrix(1, Dtype::bf16).data, .c = at}, room.data());
  finish();
}

Overhead CudaBackend::overhead() {
  if (!before_.unknown.empty()) return {0, before_.unknown};
  try {
    run_a_little();
  } catch (const Error& e) {
    return {0, split(e.what(), '\n')[0]};
  }
  return gained(before_, gpu_use(nvml_, bus_address_), reserved(*device_));
}

bool CudaBackend::on_device(const void* p) const { return is_device_memory(*device_, p); }

Buffer CudaBackend::reserve(size_t bytes, const char* what) {
  const size_t size = std::max<size_t>(bytes, 1);
  void* data = take_memory(*device_, size);
  if (!data)
    fail(str("memory for ", what, " on ", describe()),
         str(human_bytes(bytes), " could not be had; in use: ", human_bytes(ledger().used()), " (", ledger().text(), ")"),
         str("what this device has, ", human_bytes(total_memory()), " in all, ", human_bytes(free_memory()), " free now"),
         "use a smaller model, batch or context, more ranks, or --use_cpu_offload true; `tessera plan` with the same flags says what fits");
  return Buffer(data, size, give_memory);
}

Buffer CudaBackend::reserve_pinned(size_t bytes, const char* what) {
  const size_t size = std::max<size_t>(bytes, 1);
  void* data = take_pinned(*device_, size);
  if (!data)
    fail(str("pinned host memory for ", what), str(human_bytes(bytes), " could not be had"), "what the host has free and may lock",
         "free some memory of the host, or raise `ulimit -l`");
  return Buffer(data, size, give_pinned);
}

Buffer CudaBackend::pin(void* data, size_t bytes, const char*) {
  if (bytes == 0) return {};
  CUDA_SIDE::pin(data, bytes);
  return Buffer(data, bytes, unpin);
}

void CudaBackend::copy(void* to, const void* from, size_t bytes) {
  if (bytes) CUDA_SIDE::copy(*device_, Lane::compute, to, from, bytes);
}

void CudaBackend::fill_zero(Tensor x) {
  if (x.bytes()) CUDA_SIDE::fill_zero(*device_, Lane::compute, x.data, x.bytes());
}

Moment CudaBackend::now(Lane lane) { return CUDA_SIDE::now(*device_, lane); }
void CudaBackend::wait(Lane lane, Moment m) { CUDA_SIDE::wait(*device_, lane, m); }
void* CudaBackend::native(Lane lane) { return CUDA_SIDE::native(*device_, lane); }

void CudaBackend::copy_beside(void* to, const void* from, size_t bytes) {
  if (bytes) CUDA_SIDE::copy(*device_, on_device(to) ? Lane::to_device : Lane::to_host, to, from, bytes);
}

void CudaBackend::finish() {
  for (const Lane lane : all_lanes) CUDA_SIDE::finish(*device_, lane);
}

std::byte* CudaBackend::scratch(size_t bytes) {
  if (scratch_.bytes() < bytes) {
    scratch_ = Buffer();
    scratch_ = allocate(bytes, "scratch of products");
  }
  return scratch_.data();
}

std::unique_ptr<Backend> make_cuda_backend(int index, int threads, uint64_t seed, const NvmlLibrary* library) {
  return std::make_unique<CudaBackend>(index, threads, seed, library ? *library : nvml());
}

}  // namespace tessera::CUDA_SIDE
