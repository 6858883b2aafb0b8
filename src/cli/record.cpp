#include "cli/record.h"

#include <cmath>
#include <cstdio>

#include "core/text.h"

namespace tessera {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += str('\\', c);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (code < 0x20 || code == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", code);
      out += escaped;
    } else
      out += c;
  }
  return out + "\"";
}

void Record::begin(std::string_view key) { body_ += str(body_.empty() ? "" : ", ", quoted(key), ": "); }

Record& Record::add(std::string_view key, std::string_view text) {
  begin(key);
  body_ += quoted(text);
  return *this;
}
Record& Record::add(std::string_view key, bool value) {
  begin(key);
  body_ += value ? "true" : "false";
  return *this;
}
Record& Record::add(std::string_view key, double value) {
  begin(key);
  body_ += std::isfinite(value) ? str(value) : "null";
  return *this;
}
Record& Record::add(std::string_view key, int64_t value) {
  begin(key);
  body_ += str(value);
  return *this;
}
Record& Record::add(std::string_view key, uint64_t value) {
  begin(key);
  body_ += str(value);
  return *this;
}
Record& Record::add(std::string_view key, const std::vector<int32_t>& values) {
  begin(key);
  body_ += '[';
  for (size_t i = 0; i < values.size(); ++i) body_ += str(i ? ", " : "", values[i]);
  body_ += ']';
  return *this;
}
Record& Record::add(std::string_view key, const std::vector<std::string>& values) {
  begin(key);
  body_ += '[';
  for (size_t i = 0; i < values.size(); ++i) body_ += str(i ? ", " : "", quoted(values[i]));
  body_ += ']';
  return *this;
}

}  // namespace tessera
