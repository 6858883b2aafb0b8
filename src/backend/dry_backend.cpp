#include "backend/dry_backend.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/text.h"

namespace tessera {

Buffer DryBackend::reserve(size_t bytes, const char* what) {
  const size_t size = std::max<size_t>(bytes, 1);
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    fail(str("planning the memory for ", what), str(human_bytes(bytes), " of address space could not be had: ", std::strerror(errno)),
         "a process without a limit on its address space", "ulimit -v unlimited");
  return Buffer(data, size, [](void* at, size_t n) { munmap(at, n); });
}

size_t DryBackend::total_memory() const {
  rlimit space{};
  const bool limited = getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY;
  return limited ? size_t(space.rlim_cur) / 4 : size_t(16) << 40;
}

}  // namespace tessera
