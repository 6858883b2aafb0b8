#include "io/disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"

namespace tessera {
namespace {

std::atomic<bool> hooked = false;
std::shared_mutex hook_guard;
DiskHook hook;

// What the system returns; -1 with errno when the hook refuses. `call` gets the most bytes that may be written.
template <class F>
ssize_t once(const DiskCall& c, const F& call) {
  if (!hooked.load(std::memory_order_acquire)) return call(size_t(-1));
  const std::shared_lock lock(hook_guard);
  const DiskAnswer answer = hook.before ? hook.before(c) : DiskAnswer{};
  if (answer.error) {
    errno = answer.error;
    return -1;
  }
  const ssize_t n = call(answer.most);
  if (n >= 0 && hook.after) hook.after(c, size_t(n));
  return n;
}

template <class F>
ssize_t repeated(const DiskCall& c, const F& call) {
  ssize_t n = 0;
  while ((n = once(c, call)) < 0 && errno == EINTR) continue;
  return n;
}

std::string space_left(const std::string& path) {
  struct statvfs info {};
  if (statvfs(parent_folder(path).c_str(), &info) != 0) return "";
  return str("; ", uint64_t(info.f_bavail) * info.f_frsize, " bytes are free in its file system");
}

[[noreturn]] void fail_disk(const std::string& path, const std::string& action) {
  const int code = errno;
  const bool full = code == ENOSPC || code == EDQUOT;
  fail(path, str("cannot ", action, ": ", std::strerror(code), full ? space_left(path) : ""),
       full ? "a file system with space for it, within the user's quota" : "a folder that exists and is writable, on a disk without faults",
       full ? "free space there, or choose another folder" : "check the path, the permissions and the disk");
}

int flags_of(DiskFile::How how) {
  const int kind = how == DiskFile::How::fresh ? O_CREAT | O_TRUNC : how == DiskFile::How::append ? O_CREAT | O_APPEND : O_APPEND;
  return O_WRONLY | O_CLOEXEC | kind;
}

}  // namespace

const char* name_of(DiskAct act) {
  constexpr const char* names[] = {"make_folder", "open",     "write",       "cut",    "sync",         "close",
                                   "rename",      "exchange", "sync_folder", "remove", "remove_folder"};
  return names[size_t(act)];
}

void set_disk_hook(DiskHook next) {
  const std::unique_lock lock(hook_guard);
  hook = std::move(next);
  hooked = bool(hook.before) || bool(hook.after);
}

DiskFile::DiskFile(const std::string& path, How how) : path_(path) {
  fd_ = int(repeated({.act = DiskAct::open, .path = path, .fresh = how == How::fresh},
                     [&](size_t) { return open(path.c_str(), flags_of(how), 0666); }));
  if (fd_ < 0) fail_disk(path_, "write");
}

DiskFile::~DiskFile() {
  if (fd_ >= 0) ::close(fd_);
}

void DiskFile::write(std::span<const std::byte> bytes) {
  constexpr size_t largest = size_t(1) << 30;
  while (!bytes.empty()) {
    const ssize_t n = repeated({.act = DiskAct::write, .path = path_, .bytes = bytes}, [&](size_t most) {
      return ::write(fd_, bytes.data(), std::min({bytes.size(), largest, most}));
    });
    if (n < 0) fail_disk(path_, str("write ", bytes.size(), " bytes"));
    bytes = bytes.subspan(size_t(n));
  }
}

void DiskFile::cut(size_t size) {
  if (repeated({.act = DiskAct::cut, .path = path_, .size = size}, [&](size_t) { return ftruncate(fd_, off_t(size)); }) < 0)
    fail_disk(path_, str("cut to ", size, " bytes"));
}

void DiskFile::sync() {
  if (repeated({.act = DiskAct::sync, .path = path_}, [&](size_t) { return fsync(fd_); }) < 0) fail_disk(path_, "write to the disk itself");
}

// An interrupted close has closed (Linux, close(2)).
void DiskFile::close() {
  const auto call = [&](size_t) {
    const int done = ::close(std::exchange(fd_, -1));
    return done < 0 && errno == EINTR ? 0 : done;
  };
  if (repeated({.act = DiskAct::close, .path = path_}, call) < 0) fail_disk(path_, "write and close");
}

size_t DiskFile::size() const {
  struct stat info {};
  if (fstat(fd_, &info) != 0) fail_disk(path_, "write");
  return size_t(info.st_size);
}

bool disk_make_folder(const std::string& path) {
  if (repeated({.act = DiskAct::make_folder, .path = path}, [&](size_t) { return mkdir(path.c_str(), 0777); }) == 0) return true;
  if (errno == EEXIST && folder_exists(path)) return false;
  if (errno == EEXIST)
    fail(path, "cannot make this folder: a file of that name exists", "a path in a writable folder", "choose another path");
  fail_disk(path, "make this folder");
}

void disk_rename(const std::string& from, const std::string& to) {
  if (repeated({.act = DiskAct::rename, .path = from, .to = to}, [&](size_t) { return rename(from.c_str(), to.c_str()); }) < 0)
    fail_disk(to, str("rename ", from, " to it"));
}

bool disk_exchange(const std::string& a, const std::string& b) {
  const auto call = [&](size_t) { return renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE); };
  if (repeated({.act = DiskAct::exchange, .path = a, .to = b}, call) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return false;
  fail_disk(b, str("exchange it with ", a));
}

// File systems that cannot sync a folder say EINVAL.
void disk_sync_folder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_disk(path, "open the folder");
  struct Closed {
    int fd;
    ~Closed() { ::close(fd); }
  } const closed{fd};
  if (repeated({.act = DiskAct::sync_folder, .path = path}, [&](size_t) { return fsync(fd); }) < 0 && errno != EINVAL)
    fail_disk(path, "sync the folder");
}

void disk_remove(const std::string& path) {
  if (repeated({.act = DiskAct::remove, .path = path}, [&](size_t) { return unlink(path.c_str()); }) < 0 && errno != ENOENT)
    fail_disk(path, "remove");
}

void disk_remove_folder(const std::string& path) {
  if (repeated({.act = DiskAct::remove_folder, .path = path}, [&](size_t) { return rmdir(path.c_str()); }) < 0 && errno != ENOENT)
    fail_disk(path, "remove");
}

}  // namespace tessera
