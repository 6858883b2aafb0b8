// What of CUDA the backend needs beside kernels: a device's memory, its lanes, moments, copies. Two implementations: runtime_cuda.cpp by
// the CUDA runtime, and cuda_host/runtime_host.cpp on the host, for tests. Errors of the device become Error.
// A Device belongs to one thread at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace tessera::CUDA_SIDE {

struct Device;
struct CloseDevice {
  void operator()(Device*) const;  // after all its work is done
};
using OpenDevice = std::unique_ptr<Device, CloseDevice>;

// Before the device is opened: how NVML names it, empty when there is none; whether this process has opened it before.
std::string bus_address(int index);
bool is_in_use(int index);

// Throws Error that says why when there is no such device. `seed`: the order in which the host runs lanes and threads; unused by CUDA.
OpenDevice open_device(int index, uint64_t seed);
std::string describe(Device&);  // "cuda:0 NVIDIA H200, 132 multiprocessors"
int multiprocessors(Device&);
size_t total_memory(Device&);
size_t free_memory(Device&);
size_t reserved(Device&);  // by this process, bytes as the device counts them

// Null when there is no room. Zeroed once everything given to the compute lane so far is done.
void* take_memory(Device&, size_t bytes);
void give_memory(void* data, size_t bytes);  // waits for what is using it
bool is_device_memory(Device&, const void*);
void* take_pinned(Device&, size_t bytes);  // host memory, zeroed; null when there is no room
void give_pinned(void* data, size_t bytes);
void pin(void* data, size_t bytes);  // memory of the host, page aligned
void unpin(void* data, size_t bytes);

Moment now(Device&, Lane);
void wait(Device&, Lane, Moment);
void finish(Device&, Lane);  // the host waits
void* native(Device&, Lane);
// In the order of the lane. From pinned memory the bytes are read later; from other host memory before it returns. To host memory they have
// arrived when it returns, unless it is pinned and `lane` is not compute.
void copy(Device&, Lane, void* to, const void* from, size_t bytes);
void fill_zero(Device&, Lane, void* data, size_t bytes);

// For `tessera env`; never throws.
int device_count();
std::vector<std::pair<std::string, std::string>> facts();

}  // namespace tessera::CUDA_SIDE
