// A disk with faults, for what the program writes below one folder (io/disk.h). For *_test.cpp only; one at a time in a process.
//   FaultyDisk disk(folder.path(), {.crash_at = 7});
//   try { save(); } catch (const SimulatedCrash&) {}
//   disk.lose_power(seed);   // optional: the files are now what such a loss could leave
// Every call that changes the disk is one change, numbered from 0.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "io/disk.h"

namespace tessera {

// The end of the process. No std::exception, so that nothing that handles errors goes on after it.
struct SimulatedCrash {};

struct DiskFaults {
  int64_t crash_at = -1;               // this change does not take place, nor does any after it: each throws SimulatedCrash
  bool torn = false;                   // when it is a write: its first half does take place
  int64_t fail_at = -1;                // this change fails with `error`
  int error = 0;                       // ENOSPC: later ones that need space fail too, until the disk is taken away
  bool only_renames = false;           // fail_at counts renames and exchanges alone
  size_t most_per_write = 0;           // > 0: short writes
  int interrupted_every = 0;           // > 0: every so many changes one fails with EINTR first
  bool exchanges = true;               // false: as a file system that cannot exchange names
  std::chrono::microseconds pause{0};  // before each change
};

class FaultyDisk {
 public:
  // The model of a loss of power begins with what lies in `root` now, as if it were on the disk itself.
  explicit FaultyDisk(const std::string& root, DiskFaults = {});
  FaultyDisk(const FaultyDisk&) = delete;
  FaultyDisk& operator=(const FaultyDisk&) = delete;
  ~FaultyDisk();  // the disk is healthy again
  void heal();    // the same; the model stays

  std::vector<std::string> changes() const;  // "write checkpoint-2.tmp/config.json.tmp-17", in order
  bool crashed() const;

  // Heals, and makes the files below root what a loss of power at this moment could leave: what was synced, and by the seed some of the
  // rest. A name that was made, renamed or removed since the sync of its folder may be as before; bytes since the sync of their file may be
  // missing, cut or garbage. Seed 0: nothing that was not synced; seed 1: all names, no unsynced bytes. Once, last.
  void lose_power(uint64_t seed);

 private:
  struct Node {
    bool folder = false;
    std::string now, synced;                         // of a file
    std::map<std::string, int> names, synced_names;  // of a folder: nodes
  };
  struct Renaming {  // names of one folder that change together; node -1: the name goes
    int folder;
    std::vector<std::pair<std::string, int>> names;
  };
  DiskAnswer before(const DiskCall&);
  void after(const DiskCall&, size_t done);
  int load(const std::string& path);
  int find(const std::string& path) const;  // -1: none
  int parent(const std::string& path) const;
  void change_names(const std::string& path, std::vector<std::pair<std::string, int>> names);
  void sync_names(int folder);
  void write_out(int node, const std::string& path, uint64_t seed) const;

  const std::string root_;
  const DiskFaults faults_;
  mutable std::mutex guard_;
  std::vector<std::string> changes_;
  int64_t renames_ = 0;
  bool crashed_ = false, full_ = false, interrupted_ = false;
  std::vector<Node> nodes_;
  std::vector<Renaming> unsynced_;
};

}  // namespace tessera
