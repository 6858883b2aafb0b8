#include "io/file.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail_errno(const std::string& path, const std::string& action, const std::string& allowed, const std::string& remedy) {
  const int code = errno;
  fail(path, "cannot " + action + ": " + std::strerror(code), allowed, remedy);
}
[[noreturn]] void fail_read(const std::string& path) {
  fail_errno(path, "read", "a file that this user can read", "check the path and the permissions");
}
[[noreturn]] void fail_write(const std::string& path, const std::string& action = "write") {
  fail_errno(path, action, "a folder that exists, is writable and has space", "check the path, the permissions and the free space");
}

// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_;
};

size_t open_size(const Descriptor& file, const std::string& path) {
  struct stat info {};
  if (!file.valid() || fstat(file.get(), &info) != 0) fail_read(path);
  if (!S_ISREG(info.st_mode)) {
    fail(path, S_ISDIR(info.st_mode) ? "a folder" : "not a regular file", "a file", "name a file");
  }
  return size_t(info.st_size);
}

void write_all(int fd, const std::byte* data, size_t bytes, const std::string& path) {
  while (bytes) {
    const ssize_t n = write(fd, data, std::min(bytes, size_t(1) << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_write(path);
    data += n;
    bytes -= size_t(n);
  }
}

void sync_folder(const std::string& path) {
  const Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid() || (fsync(folder.get()) != 0 && errno != EINVAL)) fail_write(path, "sync the folder");
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  size_ = open_size(file, path);
  if (!size_) return;
  void* memory = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) fail_read(path);
  data_ = static_cast<const std::byte*>(memory);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::drop(size_t begin, size_t end) const {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  begin = (begin + page - 1) / page * page;
  end = end == size_ ? size_ : end / page * page;
  if (begin < end) madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool folder_exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}
bool same_folder(const std::string& a, const std::string& b) {
  std::error_code none;
  return std::filesystem::equivalent(a, b, none);
}

std::string read_file(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text(open_size(file, path), '\0');
  size_t have = 0;
  while (have < text.size()) {
    const ssize_t n = read(file.get(), text.data() + have, text.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_read(path);
    if (n == 0) break;
    have += size_t(n);
  }
  text.resize(have);
  return text;
}

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || !folder_exists(path)) {
    fail(path, "cannot make this folder: " + (error ? error.message() : "a file of that name exists"), "a path in a writable folder",
         "choose another path");
  }
}

std::vector<std::string> list_folder(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string file_name(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return "";
  const size_t slash = path.rfind('/', end);
  return path.substr(slash == std::string::npos ? 0 : slash + 1, end - (slash == std::string::npos ? size_t(-1) : slash));
}

std::string parent_folder(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  const size_t slash = path.rfind('/', end);
  if (slash == std::string::npos) return ".";
  const size_t last = path.find_last_not_of('/', slash);
  return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

AtomicFile::AtomicFile(const std::string& path) : path_(path), temporary_(str(path, ".tmp-", getpid())) {
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_write(path_);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) { write_all(fd_, bytes.data(), bytes.size(), path_); }

void AtomicFile::sync() {
  if (fsync(fd_) != 0) fail_write(path_);
}

void AtomicFile::commit() {
  sync();
  if (close(std::exchange(fd_, -1)) != 0) fail_write(path_);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail_write(path_);
  temporary_.clear();
  sync_folder(parent_folder(path_));
}

void write_file_atomic(const std::string& path, std::string_view content) {
  const std::span<const std::byte> piece = std::as_bytes(std::span(content));
  write_file_atomic(path, std::span(&piece, 1));
}

void write_file_atomic(const std::string& path, std::span<const std::span<const std::byte>> pieces) {
  AtomicFile file(path);
  for (const auto& piece : pieces) file.write(piece);
  file.commit();
}

void copy_file_atomic(const std::string& from, const std::string& to) {
  const MappedFile source(from);
  const std::span<const std::byte> piece(source.data(), source.size());
  write_file_atomic(to, std::span(&piece, 1));
}

// An existing folder is exchanged in one step where the file system can, so that `to` names a complete folder at every moment.
void rename_folder(const std::string& from, const std::string& to) {
  if (!folder_exists(from)) fail(from, "no such folder", "a complete folder", "this is a fault of the program that wrote it");
  const bool replaces = folder_exists(to);
  const std::string old = replaces ? str(parent_folder(to), "/", file_name(to), ".old-", getpid()) : "";
  if (replaces && renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    if (rename(from.c_str(), old.c_str()) != 0) fail_write(from, "rename");
  } else {
    if (replaces && rename(to.c_str(), old.c_str()) != 0) fail_write(to, "rename");
    if (rename(from.c_str(), to.c_str()) != 0) fail_write(to, "rename " + from + " to it");
  }
  sync_folder(parent_folder(to));
  if (replaces) remove_all(old);
}

void remove_all(const std::string& path) {
  assert(!path.empty());
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail(path, "cannot remove: " + error.message(), "a path that this user can remove", "check the permissions");
}

void append_line(const std::string& path, std::string_view line) {
  const Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file.valid()) fail_write(path);
  const std::string text = std::string(line) + "\n";
  write_all(file.get(), std::as_bytes(std::span(text)).data(), text.size(), path);
}

void Sha256::Free::operator()(void* context) const { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context)); }

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  if (!context_ || EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_.get()), EVP_sha256(), nullptr) != 1) {
    fail("OpenSSL", "SHA-256 does not start", "an OpenSSL with SHA-256", "check the installation of libcrypto");
  }
}

void Sha256::update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_.get()), bytes.data(), bytes.size());
}

std::string Sha256::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_.get()), digest, &size);
  constexpr const char* digits = "0123456789abcdef";
  std::string out;
  for (unsigned int i = 0; i < size; ++i) out += {digits[digest[i] >> 4], digits[digest[i] & 15]};
  return out;
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex();
}

std::string sha256_file(const std::string& path) {
  const MappedFile file(path);
  return sha256_hex({file.data(), file.size()});
}

}  // namespace tessera
