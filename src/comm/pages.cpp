#include "comm/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {
Buffer map(size_t bytes, int flags, int file) {
  if (bytes == 0) return {};
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
  if (data == MAP_FAILED)
    fail("shared window", str(human_bytes(bytes), " refused: ", std::strerror(errno)), "as much as the memory of the node",
         "use a smaller model or a format with fewer bits");
  return {data, bytes, [](void* at, size_t n) { munmap(at, n); }};
}
}  // namespace

Buffer private_pages(size_t bytes) { return map(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1); }
Buffer file_pages(int file, size_t bytes) { return map(bytes, MAP_SHARED, file); }

int memory_file(size_t bytes) {
  const int file = memfd_create("tessera", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, off_t(bytes)) != 0)
    fail("shared window", str(human_bytes(bytes), " refused: ", std::strerror(errno)), "a system with memfd_create",
         "use Linux 3.17 or later");
  return file;
}
void close_file(int file) { close(file); }

}  // namespace tessera
