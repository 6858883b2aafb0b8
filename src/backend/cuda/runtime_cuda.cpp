// By the CUDA runtime, which is linked in; a machine without a driver says so when a device is opened.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cstring>

#include "backend/cuda/blas_library_cuda.h"
#include "backend/cuda/runtime.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr size_t lanes = std::size(all_lanes);
constexpr size_t ring = 256;                      // events of a lane; an old moment is waited for by a newer one in its place
constexpr size_t staging_half = size_t(4) << 20;  // of pageable host memory on its way to the device; there are two halves
constexpr size_t most_staged = size_t(1) << 20;   // larger copies wait for their end
constexpr size_t page = size_t(2) << 20;          // of device memory: larger pieces take whole ones, smaller ones share them

// One process has one GPU.
std::atomic<int64_t> reserved_bytes{0};
std::atomic<uint64_t> opened{0};  // a bit for each device

int64_t in_pages(size_t bytes) { return int64_t(bytes < page / 2 ? bytes : (bytes + page - 1) / page * page); }

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fail(str("CUDA, ", what), str(cudaGetErrorName(error), ": ", cudaGetErrorString(error)), "calls that succeed",
       "see whether the device is healthy (nvidia-smi) and not out of memory; `tessera env` shows driver and libraries");
}

}  // namespace

struct Device {
  int index = 0;
  cudaDeviceProp properties{};
  std::array<cudaStream_t, lanes> stream{};
  std::array<std::array<cudaEvent_t, ring>, lanes> events{};
  std::array<uint64_t, lanes> given{};  // moments made
  // Small host arrays are copied here first, so that the caller need not wait; a half is free again after its event.
  std::byte* staging = nullptr;
  size_t half = 0, staged = 0;
  std::array<cudaEvent_t, 2> half_free{};

  cudaStream_t at(Lane lane) const { return stream[size_t(lane)]; }
  const void* stage(const void* from, size_t bytes);
};

// Halves alternate: when one is full, the copies out of it get an event that its next use waits for.
const void* Device::stage(const void* from, size_t bytes) {
  const size_t padded = (bytes + 63) / 64 * 64;
  if (staged + padded > staging_half) {
    check(cudaEventRecord(half_free[half], at(Lane::compute)), "staging");
    half ^= 1, staged = 0;
    check(cudaEventSynchronize(half_free[half]), "staging");
  }
  std::byte* const to = staging + half * staging_half + staged;
  std::memcpy(to, from, bytes);
  staged += padded;
  return to;
}

std::string bus_address(int index) {
  char text[32] = "";
  if (cudaDeviceGetPCIBusId(text, sizeof text, index) == cudaSuccess) return text;
  cudaGetLastError();
  return "";
}
bool is_in_use(int index) { return index < 64 && opened >> index & 1; }

OpenDevice open_device(int index, uint64_t) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    fail("device cuda", str("no GPU can be used: ", cudaGetErrorString(error)), "an NVIDIA GPU with a driver for CUDA 13 or newer",
         "use --device cpu, or install the driver; `tessera env` shows what is there");
  if (index >= count)
    fail(str("device cuda:", index), str("there are ", count, " GPUs"), str("cuda:0 to cuda:", count - 1),
         "start fewer ranks on this machine, or look at CUDA_VISIBLE_DEVICES");
  OpenDevice device(std::make_unique<Device>().release());
  Device& d = *device;
  d.index = index;
  if (index < 64) opened |= uint64_t(1) << index;
  check(cudaSetDevice(index), "choosing the device");
  check(cudaGetDeviceProperties(&d.properties, index), "reading the device's properties");
  if (d.properties.major < 8)
    fail(str("device cuda:", index), str(d.properties.name, " has compute capability ", d.properties.major, ".", d.properties.minor),
         "8.0 or newer (A100, RTX 30 and later): bf16 tensor cores", "use --device cpu, or another GPU by CUDA_VISIBLE_DEVICES");
  for (size_t l = 0; l < lanes; ++l) {
    check(cudaStreamCreateWithFlags(&d.stream[l], cudaStreamNonBlocking), "making a stream");
    for (cudaEvent_t& e : d.events[l]) check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "making an event");
  }
  for (cudaEvent_t& e : d.half_free) check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "making an event");
  check(cudaMallocHost(reinterpret_cast<void**>(&d.staging), 2 * staging_half), "taking pinned memory");
  return device;
}

// At the end of a process the driver may be gone already: errors are of no use then.
void CloseDevice::operator()(Device* d) const {
  cudaSetDevice(d->index);
  cudaDeviceSynchronize();
  for (size_t l = 0; l < lanes; ++l) {
    for (cudaEvent_t e : d->events[l])
      if (e) cudaEventDestroy(e);
    if (d->stream[l]) cudaStreamDestroy(d->stream[l]);
  }
  for (cudaEvent_t e : d->half_free)
    if (e) cudaEventDestroy(e);
  if (d->staging) cudaFreeHost(d->staging);
  std::default_delete<Device>()(d);
}

std::string describe(Device& d) {
  return str("cuda:", d.index, " ", d.properties.name, ", ", d.properties.multiProcessorCount, " multiprocessors, ",
             human_bytes(d.properties.totalGlobalMem));
}
int multiprocessors(Device& d) { return d.properties.multiProcessorCount; }

size_t total_memory(Device& d) { return d.properties.totalGlobalMem; }
size_t free_memory(Device& d) {
  size_t free = 0, total = 0;
  check(cudaSetDevice(d.index), "choosing the device");
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  return free;
}

void* take_memory(Device& d, size_t bytes) {
  check(cudaSetDevice(d.index), "choosing the device");
  void* p = nullptr;
  if (cudaMalloc(&p, bytes) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  reserved_bytes += in_pages(bytes);
  fill_zero(d, Lane::compute, p, bytes);
  finish(d, Lane::compute);
  return p;
}
void give_memory(void* data, size_t bytes) {
  cudaFree(data);
  reserved_bytes -= in_pages(bytes);
}
size_t reserved(Device&) { return size_t(reserved_bytes); }

bool is_device_memory(Device&, const void* p) {
  cudaPointerAttributes a{};
  if (cudaPointerGetAttributes(&a, p) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return a.type == cudaMemoryTypeDevice;
}

void* take_pinned(Device& d, size_t bytes) {
  check(cudaSetDevice(d.index), "choosing the device");
  void* p = nullptr;
  if (cudaMallocHost(&p, bytes) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  std::memset(p, 0, bytes);
  return p;
}
void give_pinned(void* data, size_t) { cudaFreeHost(data); }
void pin(void* data, size_t bytes) {
  check(cudaHostRegister(data, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped), "pinning host memory");
}
void unpin(void* data, size_t) { cudaHostUnregister(data); }

Moment now(Device& d, Lane lane) {
  const size_t l = size_t(lane);
  const uint64_t count = ++d.given[l];
  check(cudaEventRecord(d.events[l][count % ring], d.stream[l]), "recording an event");
  return count << 2 | Moment(lane);
}

void wait(Device& d, Lane lane, Moment m) {
  if (m == 0) return;
  check(cudaStreamWaitEvent(d.at(lane), d.events[m & 3][(m >> 2) % ring], 0), "waiting for an event");
}

void finish(Device& d, Lane lane) { check(cudaStreamSynchronize(d.at(lane)), "running kernels"); }
void* native(Device& d, Lane lane) { return d.at(lane); }

void copy(Device& d, Lane lane, void* to, const void* from, size_t bytes) {
  const auto kind = [](const void* p) {
    cudaPointerAttributes a{};
    if (cudaPointerGetAttributes(&a, p) != cudaSuccess) cudaGetLastError();
    return a.type;
  };
  const cudaMemoryType source = kind(from), target = kind(to);
  const auto plain = [](cudaMemoryType t) { return t == cudaMemoryTypeUnregistered; };
  const bool stage = plain(source) && target == cudaMemoryTypeDevice && lane == Lane::compute && bytes <= most_staged;
  check(cudaMemcpyAsync(to, stage ? d.stage(from, bytes) : from, bytes, cudaMemcpyDefault, d.at(lane)), "copying");
  const bool arrives_late = target == cudaMemoryTypeDevice || (target == cudaMemoryTypeHost && lane != Lane::compute);
  if (!arrives_late || (plain(source) && !stage)) finish(d, lane);
}

void fill_zero(Device& d, Lane lane, void* data, size_t bytes) { check(cudaMemsetAsync(data, 0, bytes, d.at(lane)), "filling with zeros"); }

void launch_kernel(Device& d, const void* kernel, dim3 blocks, dim3 threads, size_t shared, void** arguments) {
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
  constexpr size_t without_asking = size_t(48) << 10;
  if (shared > without_asking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "asking for shared memory");
  check(cudaLaunchKernel(kernel, blocks, threads, arguments, shared, d.at(Lane::compute)), "launching a kernel");
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

namespace {
std::string version_text(int v) { return v ? str(v / 1000, ".", v % 1000 / 10) : "none"; }
}  // namespace

std::vector<std::pair<std::string, std::string>> facts() {
  std::vector<std::pair<std::string, std::string>> out;
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  out.emplace_back("cuda driver", version_text(driver));
  out.emplace_back("cuda runtime", version_text(runtime));
  out.emplace_back("cublaslt", blas_library_fact());
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    out.emplace_back("gpus", str("none: ", cudaGetErrorString(error)));
    return out;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p{};
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    std::vector<std::string> peers;
    for (int j = 0; j < count; ++j) {
      int can = 0;
      if (j != i && cudaDeviceCanAccessPeer(&can, i, j) == cudaSuccess && can) peers.push_back(str(j));
    }
    out.emplace_back(str("gpu ", i),
                     str(p.name, ", ", human_bytes(p.totalGlobalMem), ", compute capability ", p.major, ".", p.minor, ", ",
                         p.multiProcessorCount, " multiprocessors, peer access to ", peers.empty() ? "none" : join(peers, " ")));
  }
  return out;
}

}  // namespace tessera::CUDA_SIDE
