// Progress: one line that shows that long work lives. On a terminal a bar that rewrites itself; elsewhere plain lines. Only rank 0 speaks.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace tessera {

class Progress {
 public:
  // what: "loading"; total: steps of work. `plain_seconds`: without a terminal, at least this long between two lines (0: every call).
  Progress(std::string what, int64_t total, double plain_seconds = 5);
  ~Progress();  // ends the line of a bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void at(int64_t done, const std::string& text);  // text stands behind the bar
  void clear();                                    // before another line is printed
  double seconds() const;                          // since it was made
  bool terminal() const { return terminal_; }      // a bar, not plain lines

 private:
  std::string what_;
  int64_t total_;
  double plain_seconds_;
  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace tessera
