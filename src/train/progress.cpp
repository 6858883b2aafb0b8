#include "train/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "core/log.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr int bar_width = 20;

std::string bar(int64_t done, int64_t total) {
  const int filled = total > 0 ? int(std::min(done, total) * bar_width / total) : 0;
  std::string s = "[";
  for (int i = 0; i < bar_width; ++i) s += i < filled ? "#" : ".";
  return s + "]";
}

}  // namespace

Progress::Progress(std::string what, int64_t total, double plain_seconds)
    : what_(std::move(what)),
      total_(total),
      plain_seconds_(plain_seconds),
      terminal_(speaks() && isatty(STDERR_FILENO)),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (drawn_) std::fputs("\n", stderr);
}

double Progress::seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

void Progress::clear() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

void Progress::at(int64_t done, const std::string& text) {
  if (!speaks()) return;
  const auto now = std::chrono::steady_clock::now();
  const double since = std::chrono::duration<double>(now - last_).count();
  if (terminal_) {
    if (drawn_ && done < total_ && since < 0.05) return;
    const std::string line = str("\r\033[K", what_, " ", done, "/", total_, " ", bar(done, total_), " ", text);
    std::fwrite(line.data(), 1, line.size(), stderr);
    std::fflush(stderr);
    drawn_ = true;
  } else {
    if (plain_seconds_ > 0 && since < plain_seconds_) return;
    say(str(what_, " ", done, "/", total_, "  ", text));
  }
  last_ = now;
}

}  // namespace tessera
