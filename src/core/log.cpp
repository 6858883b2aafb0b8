#include "core/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstring>

#include "core/shown.h"
#include "core/text.h"

namespace tessera {
namespace {
thread_local int log_rank = 0, log_size = 1;
constexpr size_t longest = size_t(1) << 16;

spdlog::logger& logger() {
  static const auto instance = [] {
    auto l = spdlog::stderr_logger_mt("tessera");
    l->set_pattern("%v");
    l->flush_on(spdlog::level::info);
    return l;
  }();
  return *instance;
}

size_t status_bytes(const char* key) {
  std::FILE* f = std::fopen("/proc/self/status", "r");
  if (!f) return 0;
  char line[256];
  size_t kib = 0;
  while (std::fgets(line, sizeof line, f))
    if (std::strncmp(line, key, std::strlen(key)) == 0) std::sscanf(line + std::strlen(key), ": %zu", &kib);
  std::fclose(f);
  return kib * 1024;
}
}  // namespace

void set_log_rank(int rank, int size) { log_rank = rank, log_size = size; }
bool speaks() { return log_rank == 0; }

void say(const std::string& line) {
  if (speaks()) logger().info(shown(line, longest));
}
void warn(const std::string& line) {
  if (speaks()) logger().warn("warning: {}", shown(line, longest));
}
void complain(const std::string& line) {
  logger().error("{}{}", log_size > 1 ? str("[rank ", log_rank, "] ") : std::string(), shown(line, longest));
}

size_t resident_bytes() { return status_bytes("VmRSS"); }
size_t peak_resident_bytes() { return status_bytes("VmHWM"); }

}  // namespace tessera
