// Rows: a data file read row by row. A JSON array of objects, or JSONL (one object per line); the first byte decides. Only one row is in
// parsed form at any time, so a file may be larger than memory. Every error names the file, the line (from 1) and the byte (from 0).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/template.h"

namespace tessera {

class Rows {
 public:
  explicit Rows(const std::string& path);                          // throws Error: not readable, no rows, compressed, UTF-16, ...
  static Rows of_text(std::string text, const std::string& name);  // rows held in memory; errors call it `name`
  Rows(Rows&&) noexcept;
  ~Rows();

  // Goes to the next row; false after the last one. Throws Error when the row is not a JSON object or has a key twice.
  bool next();

  // The current row. Views are valid until next(). All but has and is_list throw Error when the column does not hold what is asked for.
  int64_t number() const;  // from 0
  std::vector<std::string> columns() const;
  bool has(std::string_view column) const;  // it is there and not null
  bool is_list(std::string_view column) const;
  std::string_view text(std::string_view column) const;
  std::vector<int64_t> integers(std::string_view column) const;
  // A non-empty list of objects with two texts each, such as [{"role": "user", "content": "Hi"}].
  std::vector<Message> messages(std::string_view column, std::string_view role_key, std::string_view content_key) const;

  // Throws Error about a column of the current row, or about the whole row when `column` is empty.
  [[noreturn]] void refuse(std::string_view column, const std::string& given, const std::string& allowed, const std::string& remedy) const;

 private:
  struct Impl;
  explicit Rows(std::unique_ptr<Impl>);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
