// Files: read whole, map, write safely. Nothing is ever half-written: a file is written beside its place and renamed when complete.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// A whole file, read-only, in memory by mmap: pages are read when touched. Move-only.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws Error when it cannot be read
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;
  ~MappedFile();
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  void drop(size_t begin, size_t end) const;  // tells the kernel these bytes are not needed again (madvise)

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

bool file_exists(const std::string& path);
bool folder_exists(const std::string& path);
bool same_folder(const std::string& a, const std::string& b);   // by any path; false when one does not exist
std::string read_file(const std::string& path);                 // throws Error
void make_folder(const std::string& path);                      // with parents
std::vector<std::string> list_folder(const std::string& path);  // names, sorted; empty when there is none
std::string file_name(const std::string& path);                 // last component
std::string parent_folder(const std::string& path);

// A file written piece by piece into path.tmp-PID; commit() fsyncs it, renames it to path and fsyncs the folder. Without commit the old
// file stays and the temporary is removed. Every function throws Error with errno's words. One thread; neither copied nor moved.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();
  void write(std::span<const std::byte> bytes);
  void sync();    // what was written so far can be read back from temporary(), also after a crash
  void commit();  // once, last
  const std::string& temporary() const { return temporary_; }

 private:
  std::string path_, temporary_;
  int fd_ = -1;
};

// All at once, by an AtomicFile.
void write_file_atomic(const std::string& path, std::string_view content);
void write_file_atomic(const std::string& path, std::span<const std::span<const std::byte>> pieces);
void copy_file_atomic(const std::string& from, const std::string& to);
// Renames a complete folder to its final name and fsyncs the parent; an existing folder of that name is replaced.
void rename_folder(const std::string& from, const std::string& to);
void remove_all(const std::string& path);
// Appends one line and flushes it to the file.
void append_line(const std::string& path, std::string_view line);

// SHA-256 of bytes that come in pieces; hex() once, last.
class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);
  std::string hex();

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_;
};
std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_file(const std::string& path);

}  // namespace tessera
