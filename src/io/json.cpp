#include "io/json.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"

namespace tessera {
namespace {

constexpr size_t max_depth = 512;

// Reads the text for the parser and tells how far it has come.
struct Cursor {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  const char* at;
  const char** reached;
  reference operator*() const { return *at; }
  Cursor& operator++() {
    *reached = ++at;
    return *this;
  }
  bool operator==(const Cursor& other) const { return at == other.at; }
  bool operator!=(const Cursor& other) const { return at != other.at; }
};

// Builds the value from the parser's events; keys are appended without the search that ordered_json's own insertion makes.
class Builder {
 public:
  Builder(const std::string& text, const std::string& where) : text_(text), where_(where), reached_(text.data()) {}
  Json build();

  bool null() { return add(nullptr); }
  bool boolean(bool v) { return add(v); }
  bool number_integer(int64_t v) { return add(v); }
  bool number_unsigned(uint64_t v) { return add(v); }
  bool number_float(double v, const std::string&) { return add(v); }
  bool string(std::string& v) { return add(std::move(v)); }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name);
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error);

 private:
  struct Level {
    Json value;
    std::string key;
    std::unordered_set<std::string> keys;
  };
  bool add(Json value);
  bool open(Json empty);
  bool close();
  [[noreturn]] void refuse(size_t position, const std::string& what) const;

  const std::string& text_;
  const std::string& where_;
  const char* reached_;
  std::vector<Level> open_;
  Json root_;
};

Json Builder::build() {
  if (const size_t zero = text_.find('\0'); zero != std::string::npos) refuse(zero + 1, "a zero byte");  // the library would stop there
  const char* end = text_.data() + text_.size();
  Json::sax_parse(Cursor{text_.data(), &reached_}, Cursor{end, &reached_}, this);
  return std::move(root_);
}

bool Builder::add(Json value) {
  if (open_.empty()) {
    root_ = std::move(value);
  } else if (Level& level = open_.back(); level.value.is_array()) {
    level.value.get_ref<Json::array_t&>().push_back(std::move(value));
  } else {
    static_cast<Json::object_t::Container&>(level.value.get_ref<Json::object_t&>()).emplace_back(std::move(level.key), std::move(value));
  }
  return true;
}

bool Builder::open(Json empty) {
  if (open_.size() == max_depth) refuse(size_t(reached_ - text_.data()), str("more than ", max_depth, " levels of nesting"));
  open_.push_back({std::move(empty), {}, {}});
  return true;
}

bool Builder::close() {
  Json value = std::move(open_.back().value);
  open_.pop_back();
  return add(std::move(value));
}

bool Builder::key(std::string& name) {
  if (!open_.back().keys.insert(name).second) refuse(size_t(reached_ - text_.data()), "the key \"" + name + "\" is there twice");
  open_.back().key = std::move(name);
  return true;
}

// The library's text is "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..."; the place is told by refuse.
bool Builder::parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
  std::string what = error.what();
  what.erase(0, what.find("] ") + 2);
  if (starts_with(what, "parse error at")) what.erase(0, what.find(": ") + 2);
  refuse(position, text_.empty() ? "empty text" : what);
}

void Builder::refuse(size_t position, const std::string& what) const {
  const std::string_view before(text_.data(), std::min(position ? position - 1 : 0, text_.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t newline = before.rfind('\n');
  const size_t column = 1 + before.size() - (newline == std::string_view::npos ? 0 : newline + 1);
  fail(str(where_, ", line ", line, ", column ", column), what, "one JSON value in UTF-8, each key once per object",
       "correct the file, or fetch it again");
}

}  // namespace

Json parse_json(const std::string& text, const std::string& where) { return Builder(text, where).build(); }
Json read_json(const std::string& path) { return parse_json(read_file(path), path); }

}  // namespace tessera
