// Files: read whole, map, write safely. Nothing is ever half-written: a file is written beside its place and renamed when complete.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/disk.h"

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
void make_folder(const std::string& path);                      // with parents; their names are on the disk itself
std::vector<std::string> list_folder(const std::string& path);  // names, sorted; empty when there is none
std::string file_name(const std::string& path);                 // last component
std::string parent_folder(const std::string& path);

// What a crash or a loss of power at any moment leaves: the old content or the new one, whole, at the path. What the functions below have
// returned from is on the disk itself; when they throw Error (io/disk.h), the path holds the old content, or the new one when only the
// last steps failed. A crash can also leave names like PATH.tmp-PID: recover_folder().

// A file written piece by piece into path.tmp-PID; commit() fsyncs it, renames it to path and fsyncs the folder. Without commit the old
// file stays and the temporary is removed. One thread; neither copied nor moved.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();
  void write(std::span<const std::byte> bytes) { file_.write(bytes); }
  void sync() { file_.sync(); }  // what was written so far can be read back from temporary(), also after a crash
  void commit();                 // once, last
  const std::string& temporary() const { return temporary_; }

 private:
  std::string path_, temporary_;
  DiskFile file_;
  bool committed_ = false;
};

// All at once, by an AtomicFile.
void write_file_atomic(const std::string& path, std::string_view content);
void write_file_atomic(const std::string& path, std::span<const std::span<const std::byte>> pieces);
void copy_file_atomic(const std::string& from, const std::string& to);
// Renames a complete folder to its final name in the same parent; an existing folder of that name is replaced. At every moment `to` names
// the old or the new one; on file systems that cannot exchange names it can be absent after a crash, until recover_folder().
// REQUIRES: every file in `from` is on the disk itself.
void rename_folder(const std::string& from, const std::string& to);
// A file, or a folder with all it holds; nothing when there is none. After a crash a folder is there whole or not at all.
void remove_all(const std::string& path);
// Ends what a crash left half-done in a folder: files being written and folders being removed go, a folder that was being replaced and has
// no successor gets its name back. Temporary names of other living processes are left alone.
void recover_folder(const std::string& path);
// Appends one line in one write, not synced. A line that does not fit is taken back; a crash can leave the last line torn.
void append_line(const std::string& path, std::string_view line);
void sync_file(const std::string& path);  // what was appended is on the disk itself

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
std::string sha256_from(const MappedFile&, size_t begin);  // of its rest; the pages are given back, so the size of the file does not matter

}  // namespace tessera
