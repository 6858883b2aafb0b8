#include "bench/process.h"

#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

namespace tessera {

void wait_restfully(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  setenv("GOMP_SPINCOUNT", "1000", 1);
  execv("/proc/self/exe", argv);
}

double seconds_since_start() {
  std::ifstream file("/proc/self/stat");
  std::string stat((std::istreambuf_iterator<char>(file)), {});
  // proc(5): the name, field 2, may hold spaces; starttime is field 22, in ticks since boot.
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return double(now.tv_sec) + double(now.tv_nsec) * 1e-9 - std::stod(field) / double(sysconf(_SC_CLK_TCK));
}

Resident resident() {
  Resident r;
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string key;
    size_t kib = 0;
    words >> key >> kib;
    if (key == "VmHWM:") r.peak = kib * 1024;
    if (key == "RssAnon:") r.anonymous = kib * 1024;
    if (key == "RssFile:") r.file = kib * 1024;
    if (key == "RssShmem:") r.shared = kib * 1024;
  }
  return r;
}

}  // namespace tessera
