// The one door through which this program changes the file system. Each call is one change, in the order in which the system gets them;
// files (io/file.h) are made of these. Every function throws Error with the path, errno's words and what to do. Calls that a signal
// interrupts are repeated. Any thread.
// Tests can watch, refuse, shorten or delay every call by a hook: testing/faulty_disk.h.
#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace tessera {

enum class DiskAct { make_folder, open, write, cut, sync, close, rename, exchange, sync_folder, remove, remove_folder };
const char* name_of(DiskAct);

struct DiskCall {
  DiskAct act;
  std::string_view path;
  std::string_view to = {};               // rename, exchange: the other path
  std::span<const std::byte> bytes = {};  // write
  size_t size = 0;                        // cut: the size that stays
  bool fresh = false;                     // open: what the file held is dropped
};
struct DiskAnswer {
  int error = 0;             // not 0: the call is not made and fails with this errno
  size_t most = size_t(-1);  // write: at most so many bytes by this call
};
// before: asked before each call; what it throws, the call throws. after: told when a call succeeded, with the bytes written.
// Both are called by every thread that writes, several at once.
struct DiskHook {
  std::function<DiskAnswer(const DiskCall&)> before;
  std::function<void(const DiskCall&, size_t done)> after;
};
// For tests, the whole process; {} takes it away. Returns when no call under the former hook is in flight.
void set_disk_hook(DiskHook);

// A file open for writing at its end. One thread; neither copied nor moved. The destructor closes without a word: call close().
class DiskFile {
 public:
  enum class How { fresh, append, existing };  // existing: as append, but the file must be there
  DiskFile(const std::string& path, How);
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;
  ~DiskFile();
  void write(std::span<const std::byte> bytes);  // all of them
  void cut(size_t size);                         // to this size
  void sync();                                   // what was written survives a loss of power, when the file's folder was synced too
  void close();
  size_t size() const;
  bool is_open() const { return fd_ >= 0; }

 private:
  std::string path_;
  int fd_ = -1;
};

bool disk_make_folder(const std::string& path);                    // one level; false when the folder is there already
void disk_rename(const std::string& from, const std::string& to);  // a file or an empty folder at `to` is replaced
bool disk_exchange(const std::string& a, const std::string& b);    // in one step; false when the file system cannot
void disk_sync_folder(const std::string& path);                    // names made, renamed and removed in it survive a loss of power
void disk_remove(const std::string& path);                         // a file; nothing when there is none
void disk_remove_folder(const std::string& path);                  // an empty folder; nothing when there is none

}  // namespace tessera
