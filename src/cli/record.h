// Record: one JSON object on one line, written key by key. Text is UTF-8 and passes as it is; numbers are the shortest that read back.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

class Record {
 public:
  Record& add(std::string_view key, std::string_view text);
  Record& add(std::string_view key, const char* text) { return add(key, std::string_view(text)); }
  Record& add(std::string_view key, bool value);
  Record& add(std::string_view key, double value);  // null when it is not finite
  Record& add(std::string_view key, int64_t value);
  Record& add(std::string_view key, uint64_t value);
  Record& add(std::string_view key, const std::vector<int32_t>& values);
  Record& add(std::string_view key, const std::vector<std::string>& values);
  std::string line() const { return "{" + body_ + "}"; }

 private:
  void begin(std::string_view key);
  std::string body_;
};

std::string quoted(std::string_view text);  // a JSON string, which is a YAML string, too

}  // namespace tessera
