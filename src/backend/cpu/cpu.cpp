#include "backend/cpu/cpu.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"
#include "core/error.h"
#include "core/text.h"
#include "hwy/highway.h"

namespace tessera {
namespace {
constexpr size_t huge_page = size_t(2) << 20;
constexpr int64_t copy_grain = int64_t(1) << 20;  // bytes in a piece of work

void unmap(void* data, size_t bytes) { munmap(data, bytes); }

// The instruction set the kernels run with: the best of those this processor has.
const char* instruction_set() {
  const int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(supported & -supported);
}
}  // namespace

std::string CpuBackend::describe() const { return str("cpu, ", instruction_set(), ", ", threads_, threads_ == 1 ? " thread" : " threads"); }

// Anonymous pages are zero and cost nothing until they are touched.
Buffer CpuBackend::reserve(size_t bytes, const char* what) {
  const size_t size = std::max<size_t>(bytes, 1);
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    fail(str("memory for ", what),
         str(human_bytes(bytes), " could not be had: ", strerror(errno), "; in use: ", human_bytes(ledger().used()), " (", ledger().text(),
             ")"),
         str("what this machine has, ", human_bytes(total_memory()), " in all, ", human_bytes(free_memory()), " free now"),
         "use a smaller model, batch or context, or more ranks; `tessera plan` with the same flags says what fits");
  if (size >= 4 * huge_page) madvise(data, size, MADV_HUGEPAGE);
  return Buffer(data, size, unmap);
}

// What the machine has, less what a container or a resource limit leaves of it.
size_t CpuBackend::total_memory() const {
  size_t bytes = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGE_SIZE));
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/memory.max", "r")) {
    unsigned long long limit = 0;
    if (std::fscanf(file, "%llu", &limit) == 1) bytes = std::min(bytes, size_t(limit));  // "max": no limit
    std::fclose(file);
  }
  rlimit space{};
  if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY) bytes = std::min(bytes, size_t(space.rlim_cur) / 2);
  return bytes;
}

size_t CpuBackend::free_memory() const {
  size_t bytes = total_memory();
  if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[128];
    unsigned long long available = 0;
    while (std::fgets(line, sizeof line, file))
      if (std::sscanf(line, "MemAvailable: %llu kB", &available) == 1) bytes = std::min(bytes, size_t(available) * 1024);
    std::fclose(file);
  }
  unsigned long long used = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/memory.current", "r")) {
    if (std::fscanf(file, "%llu", &used) == 1) bytes = std::min(bytes, total_memory() - std::min(size_t(used), total_memory()));
    std::fclose(file);
  }
  return bytes;
}

void CpuBackend::copy(void* to, const void* from, size_t bytes) {
  parallel_chunks(threads_, int64_t(bytes), copy_grain, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<std::byte*>(to) + begin, static_cast<const std::byte*>(from) + begin, size_t(end - begin));
  });
}

void CpuBackend::fill_zero(Tensor x) {
  parallel_chunks(threads_, int64_t(x.bytes()), copy_grain,
                  [&](int64_t begin, int64_t end) { std::memset(x.as<std::byte>() + begin, 0, size_t(end - begin)); });
}

}  // namespace tessera
