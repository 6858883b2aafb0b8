#include "backend/backend.h"

#include <sched.h>

#include <algorithm>

#include "backend/cpu/cpu.h"
#include "core/error.h"
#include "core/text.h"

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

std::unique_ptr<Backend> make_backend(std::string_view device, int threads) {
  if (device == "cpu") return std::make_unique<CpuBackend>(threads > 0 ? threads : usable_cores());
  if (device == "cuda") fail("device cuda", "this binary was built without CUDA", "cpu", "use --device cpu");
  fail("device", str("\"", device, "\" is not a device"), "cpu", "use --device cpu");
}

}  // namespace tessera
