// Shared-memory files whose makers were killed before they could remove them. MPICH and UCX remove the names of theirs within milliseconds,
// as soon as every rank has opened them; names that stay are left-overs.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "comm/comm.h"
#include "core/text.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
constexpr time_t safe_age = 10;  // seconds

bool is_name_of_mpi(const std::string& name) {
  for (const char* prefix : {"mpich_shar_tmp", "ucx_shm_posix_"}) {
    if (!starts_with(name, prefix)) continue;
    const std::string rest = name.substr(std::string(prefix).size());
    return !rest.empty() && std::all_of(rest.begin(), rest.end(), [](unsigned char c) { return std::isalnum(c); });
  }
  return false;
}

bool old_and_ours(const std::string& path) {
  struct stat s;
  return lstat(path.c_str(), &s) == 0 && S_ISREG(s.st_mode) && s.st_uid == geteuid() && std::time(nullptr) - s.st_mtime > safe_age;
}

// Files that some process of this user holds open or mapped; a file that was opened by a name that is gone now does not matter.
std::set<std::string> held_files() {
  std::set<std::string> held;
  std::error_code none;
  for (fs::directory_iterator process("/proc", none), end; process != end; process.increment(none)) {
    const std::string folder = process->path();
    if (!std::isdigit(static_cast<unsigned char>(process->path().filename().string()[0]))) continue;
    for (fs::directory_iterator file(folder + "/fd", none), last; !none && file != last; file.increment(none)) {
      const fs::path target = fs::read_symlink(file->path(), none);
      if (!none) held.insert(target);
    }
    std::ifstream maps(folder + "/maps");
    for (std::string line; std::getline(maps, line);)
      if (const size_t at = line.find('/'); at != line.npos) held.insert(line.substr(at));
  }
  return held;
}

}  // namespace

int remove_stale_files(const std::string& folder) {
  std::vector<std::string> old;
  std::error_code none;
  for (fs::directory_iterator file(folder, none), end; !none && file != end; file.increment(none))
    if (is_name_of_mpi(file->path().filename()) && old_and_ours(file->path())) old.push_back(file->path());
  if (old.empty()) return 0;
  const auto held = held_files();
  return int(std::count_if(old.begin(), old.end(), [&](const std::string& path) { return !held.count(path) && fs::remove(path, none); }));
}

}  // namespace tessera
