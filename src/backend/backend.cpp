#include "backend/backend.h"

#include <sched.h>

#include <algorithm>
#include <charconv>

#include "backend/cpu/cpu.h"
#include "core/error.h"
#include "core/text.h"
#ifdef TESSERA_CUDA
#include "backend/cuda/make.h"
#endif

namespace tessera {
namespace {

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

}  // namespace

Buffer Backend::allocate(size_t bytes, const char* what) {
  Buffer buffer = reserve(bytes, what);
  buffer.charge(ledger(), what, bytes);
  return buffer;
}

Buffer Backend::allocate_pinned(size_t bytes, const char* what) {
  Buffer buffer = reserve_pinned(bytes, what);
  buffer.charge(host_ledger(), what, bytes);
  return buffer;
}

namespace {

Tensor batch_of(const Drop& d, Tensor x) {
  return x.reshaped({d.row_keys.size(), x.rows() / std::max<int64_t>(1, d.row_keys.size()), x.cols()});
}

// x, or in `room` what dropout leaves of it.
Tensor dropped(Backend& backend, const Drop& d, Tensor x, Tensor room) {
  if (d.p == 0 || x.size() == 0) return x;
  backend.dropout(batch_of(d, room), batch_of(d, x), d.row_keys, d.key, d.p);
  return room;
}

}  // namespace

void Backend::adapters(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  for (const AdapterProduct& one : all) {
    Product p;
    p.c = one.t, p.transpose_b = true, p.alpha = one.scale;
    p.add(dropped(*this, one.drop, x, room), one.a);
    gemm(p);
  }
}

void Backend::adapters_backward(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  for (const AdapterProduct& one : all) {
    Product p;
    p.c = one.da, p.transpose_a = true, p.accumulate = true;
    p.add(one.t, dropped(*this, one.drop, x, room));
    gemm(p);
  }
}

void Backend::adapters_input_gradient(Tensor dx, std::span<const AdapterProduct> all, Tensor room) {
  for (const AdapterProduct& one : all) {
    Product p;
    p.c = one.drop.p == 0 ? dx : room, p.accumulate = one.drop.p == 0;
    p.add(one.t, one.a);
    gemm(p);
    if (one.drop.p > 0) add(dx, dx, dropped(*this, one.drop, room, room));
  }
}

namespace {

std::unique_ptr<Backend> make_gpu([[maybe_unused]] std::string_view device, [[maybe_unused]] int threads) {
#ifdef TESSERA_CUDA
  int index = 0;
  const std::string_view number = device.size() > 5 ? device.substr(5) : "";
  const auto read = std::from_chars(number.data(), number.data() + number.size(), index);
  if (device != "cuda" && (device[4] != ':' || read.ec != std::errc() || read.ptr != number.data() + number.size()))
    fail("device", str("\"", device, "\" is not a device"), "cpu, cuda, cuda:N", "use --device cuda");
  return cuda::make_cuda_backend(index, threads);
#else
  fail("device cuda", "this binary was built without CUDA", "cpu",
       "use --device cpu, or install the CUDA toolkit and configure with -DTESSERA_CUDA=ON");
#endif
}

}  // namespace

std::unique_ptr<Backend> make_backend(std::string_view device, int threads) {
  if (threads <= 0) threads = usable_cores();
  if (device == "cpu") return std::make_unique<CpuBackend>(threads);
  if (starts_with(device, "cuda")) return make_gpu(device, threads);
  fail("device", str("\"", device, "\" is not a device"), "cpu, cuda", "use --device cpu");
}

#ifdef TESSERA_CUDA
bool built_with_cuda() { return true; }
int cuda_devices() { return cuda::device_count(); }
std::vector<std::pair<std::string, std::string>> cuda_facts() { return cuda::facts(); }
#else
bool built_with_cuda() { return false; }
int cuda_devices() { return 0; }
std::vector<std::pair<std::string, std::string>> cuda_facts() { return {}; }
#endif

}  // namespace tessera
