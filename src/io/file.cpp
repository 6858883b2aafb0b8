#include "io/file.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
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

// PATH.tmp-PID, PATH.old-PID, PATH.gone-PID: a file being written, a folder being replaced, a folder being removed.
std::string beside(const std::string& path, const char* kind) {
  const std::string name = file_name(path);
  return str(path.find('/') == std::string::npos ? "" : parent_folder(path) + "/", name, ".", kind, "-", getpid());
}

struct Beside {
  std::string path, kind;  // what it stands beside; "" for other names
  pid_t process = 0;
};
Beside parse_beside(const std::string& path) {
  const size_t dash = path.rfind('-'), dot = path.rfind('.');
  if (dash == std::string::npos || dot == std::string::npos || dot == 0 || dot > dash) return {};
  const std::string kind = path.substr(dot + 1, dash - dot - 1), digits = path.substr(dash + 1);
  const bool number = !digits.empty() && digits.size() < 10 && digits.find_first_not_of("0123456789") == std::string::npos;
  if (!number || (kind != "tmp" && kind != "old" && kind != "gone")) return {};
  return {path.substr(0, dot), kind, pid_t(std::stol(digits))};
}

bool is_there(const std::string& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}
bool is_real_folder(const std::string& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() == fs::file_type::directory;
}

// Links are removed, not followed.
void remove_tree(const std::string& path) {
  if (!is_there(path)) return;
  if (!is_real_folder(path)) return disk_remove(path);
  for (const std::string& name : list_folder(path)) remove_tree(path + "/" + name);
  disk_remove_folder(path);
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
  if (folder_exists(path)) return;
  const std::string parent = parent_folder(path);
  if (parent != path && parent != ".") make_folder(parent);
  if (disk_make_folder(path)) disk_sync_folder(parent);
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

AtomicFile::AtomicFile(const std::string& path) : path_(path), temporary_(beside(path, "tmp")), file_(temporary_, DiskFile::How::fresh) {}

// What stops the removal is no worse than what stopped the write: recover_folder() finds the file.
AtomicFile::~AtomicFile() {
  if (committed_) return;
  try {
    disk_remove(temporary_);
  } catch (...) {
  }
}

void AtomicFile::commit() {
  file_.sync();
  file_.close();
  disk_rename(temporary_, path_);
  committed_ = true;
  disk_sync_folder(parent_folder(path_));
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

namespace {
// For file systems without an exchange. Between the two renames recover_folder() knows `old` by its name.
void replace_folder(const std::string& from, const std::string& to, const std::string& old) {
  disk_rename(to, old);
  try {
    disk_rename(from, to);
  } catch (const Error&) {
    disk_rename(old, to);
    throw;
  }
}
}  // namespace

void rename_folder(const std::string& from, const std::string& to) {
  if (!folder_exists(from)) fail(from, "no such folder", "a complete folder", "this is a fault of the program that wrote it");
  disk_sync_folder(from);
  const std::string parent = parent_folder(to), old = beside(to, "old");
  if (!folder_exists(to)) {
    disk_rename(from, to);
    return disk_sync_folder(parent);
  }
  remove_all(old);
  if (disk_exchange(from, to)) {
    disk_sync_folder(parent);
    disk_rename(from, old);
  } else {
    replace_folder(from, to, old);
  }
  disk_sync_folder(parent);
  remove_tree(old);
}

// A folder loses its name first, so that no half of it is ever found under it.
void remove_all(const std::string& path) {
  assert(!path.empty());
  if (!is_real_folder(path)) return remove_tree(path);
  const std::string gone = beside(path, "gone");
  remove_tree(gone);
  disk_rename(path, gone);
  disk_sync_folder(parent_folder(path));
  remove_tree(gone);
}

void recover_folder(const std::string& path) {
  const auto lives = [](pid_t process) { return process != getpid() && (kill(process, 0) == 0 || errno == EPERM); };
  for (const std::string& name : list_folder(path)) {
    const std::string left = path + "/" + name;
    const Beside of = parse_beside(left);
    if (of.kind == "old" && !is_there(of.path)) {
      disk_rename(left, of.path);
      disk_sync_folder(path);
    } else if (!of.kind.empty() && !lives(of.process)) {
      remove_tree(left);
    }
  }
}

void append_line(const std::string& path, std::string_view line) {
  const std::string text = std::string(line) + "\n";
  DiskFile file(path, DiskFile::How::append);
  const size_t before = file.size();
  try {
    file.write(std::as_bytes(std::span(text)));
    file.close();
  } catch (const Error&) {
    if (file.is_open()) file.cut(before);
    throw;
  }
}

void sync_file(const std::string& path) {
  DiskFile file(path, DiskFile::How::existing);
  file.sync();
  file.close();
  disk_sync_folder(parent_folder(path));
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

std::string sha256_from(const MappedFile& file, size_t begin) {
  constexpr size_t stretch = size_t(16) << 20;
  Sha256 hash;
  for (size_t at = begin; at < file.size(); at += stretch) {
    const size_t end = std::min(at + stretch, file.size());
    hash.update({file.data() + at, end - at});
    file.drop(0, end);
  }
  return hash.hex();
}

std::string sha256_file(const std::string& path) { return sha256_from(MappedFile(path), 0); }

}  // namespace tessera
