// Small text helpers without heavy headers.
#pragma once
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

inline void append_text(std::string& out, std::string_view v) { out += v; }
inline void append_text(std::string& out, const std::string& v) { out += v; }
inline void append_text(std::string& out, const char* v) { out += v; }
inline void append_text(std::string& out, char v) { out += v; }
inline void append_text(std::string& out, bool v) { out += v ? "true" : "false"; }
void append_text(std::string& out, double v);  // shortest text that reads back as the same double
void append_text(std::string& out, float v);   // likewise for float
template <std::integral T>
void append_text(std::string& out, T v) {
  out += std::to_string(v);
}

// str("row ", 3, " of ", n): the parts joined.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::string out;
  (append_text(out, parts), ...);
  return out;
}

std::string significant(double v, int digits);  // significant(0.000367985, 3) = "0.000368"
std::string fixed(double v, int decimals);      // fixed(3.14159, 2) = "3.14"
std::string human_bytes(size_t bytes);          // "1.50 GiB", "322 MiB", "17 B"
std::string human_count(double n);              // "134.5 M", "12.3 k"
std::string human_seconds(double s);            // "1:02:03", "04:05"
std::vector<std::string> split(std::string_view text, char separator);
std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::string trim(std::string_view text);
std::string lower(std::string_view text);
bool starts_with(std::string_view text, std::string_view prefix);
bool ends_with(std::string_view text, std::string_view suffix);
std::string replace_all(std::string text, std::string_view from, std::string_view to);

// The candidate with the smallest edit distance to `given`, or "" when none is near (more than a third of the letters differ).
std::string nearest(std::string_view given, const std::vector<std::string>& candidates);

}  // namespace tessera
