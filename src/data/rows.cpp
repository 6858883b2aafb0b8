#include "data/rows.h"

#include <simdjson.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/text.h"
#include "data/rows_fault.h"
#include "io/file.h"

namespace tessera {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::element_type;
using simdjson::dom::object;

constexpr const char* array_or_lines = "a JSON array of objects, or JSONL (one object per line), in UTF-8";
constexpr size_t forget_after = size_t(64) << 20;  // bytes read before their pages are given back

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

std::string_view type_name(element e) {
  switch (e.type()) {
    case element_type::ARRAY:
      return "a list";
    case element_type::OBJECT:
      return "an object";
    case element_type::STRING:
      return "a text";
    case element_type::BOOL:
      return "true or false";
    case element_type::NULL_VALUE:
      return "null";
    case element_type::INT64:
    case element_type::UINT64:
    case element_type::DOUBLE:
      return "a number";
  }
  return "unknown";
}

// REQUIRES: e is of the type that is asked for.
template <class T>
T as(element e) {
  T value{};
  [[maybe_unused]] const auto error = e.get(value);
  assert(!error);
  return value;
}

// The first byte after the JSON value (well-formed or not) that starts at `begin`: a ',' or ']' outside of it, or the end.
size_t end_of_value(std::string_view text, size_t begin) {
  int64_t depth = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i)
        if (text[i] == '\\') ++i;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (depth == 0 && (c == ',' || c == ']')) {
      return i;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return text.size();
}

}  // namespace

struct Rows::Impl {
  std::string name;
  std::optional<MappedFile> file;
  std::string memory;
  std::string_view bytes;
  bool is_array = false;
  size_t at = 0;         // next byte to read
  size_t forgotten = 0;  // bytes whose pages were given back
  size_t row_begin = 0, row_end = 0;
  int64_t number = -1;
  simdjson::dom::parser parser;
  object row;

  std::string where(size_t byte, std::string_view column = {}) const {
    const auto line = 1 + std::count(bytes.begin(), bytes.begin() + int64_t(byte), '\n');
    return str(name, ": line ", line, ", byte ", byte, column.empty() ? "" : str(", column \"", column, "\""));
  }
  void open();
  void skip_space() {
    while (at < bytes.size() && is_space(bytes[at])) ++at;
  }
  bool next_line();
  bool next_element();
  void parse_row();
  void check_keys() const;
  [[noreturn]] void refuse_json(const char* reason) const;
  std::optional<element> find(std::string_view column) const;
  element get(std::string_view column) const;
  [[noreturn]] void refuse_type(std::string_view column, const std::string& what, element e, const std::string& allowed) const;
  std::string_view text_of(element e, std::string_view column, const std::string& what) const;
};

void Rows::Impl::open() {
  const auto begins = [&](std::string_view magic) { return bytes.substr(0, magic.size()) == magic; };
  const auto refuse = [&](const char* given) { fail(str(name, ": line 1, byte 0"), given, array_or_lines, "convert it to one of these"); };
  if (begins("\xFF\xFE") || begins("\xFE\xFF")) refuse("the file is UTF-16");
  if (begins("\x1F\x8B")) refuse("the file is compressed with gzip, which is not read yet");
  if (begins("PAR1")) refuse("the file is Parquet, which is not read yet");
  if (begins("ARROW1")) refuse("the file is Arrow, which is not read yet");
  if (begins("\xEF\xBB\xBF")) at = 3;
  skip_space();
  if (at == bytes.size())
    fail(str(name, ": line 1, byte 0"), "the file has no rows", array_or_lines, "check that the file was written in full");
  is_array = bytes[at] == '[';
  if (!is_array) return;
  ++at;
  skip_space();
  if (at < bytes.size() && bytes[at] == ']') fail(where(at), "the array has no rows", array_or_lines, "give a file with rows");
}

bool Rows::Impl::next_line() {
  skip_space();
  if (at == bytes.size()) return false;
  row_begin = at;
  const void* newline = std::memchr(bytes.data() + at, '\n', bytes.size() - at);
  row_end = newline ? size_t(static_cast<const char*>(newline) - bytes.data()) : bytes.size();
  at = row_end;
  if (bytes[row_end - 1] == '\r') --row_end;
  return true;
}

bool Rows::Impl::next_element() {
  skip_space();
  if (number >= 0) {
    if (at == bytes.size())
      fail(where(at), "the file ends before the array of rows is closed", "]", "check that the file was written in full");
    const char c = bytes[at++];
    skip_space();
    if (c == ']') {
      if (at != bytes.size()) fail(where(at), "text after the end of the array of rows", "nothing after ]", "remove it");
      return false;
    }
  }
  row_begin = at;
  at = row_end = end_of_value(bytes, at);
  return true;
}

void Rows::Impl::refuse_json(const char* reason) const {
  const std::string_view text = bytes.substr(row_begin, row_end - row_begin);
  const JsonFault fault = find_json_fault(text).value_or(JsonFault{0, reason});
  const char* remedy = fault.at == text.size() ? (is_array ? "check that the file was written in full"
                                                           : "write every row on one line, and check the file was written in full")
                                               : "correct the row, or remove it";
  fail(where(row_begin + fault.at), str("the row is not JSON: ", fault.what), "one JSON object per row", remedy);
}

void Rows::Impl::parse_row() {
  // The parser reads a few bytes beyond the row, which it copies only where the file ends.
  const bool copy = bytes.size() - row_end < simdjson::SIMDJSON_PADDING;
  element value;
  const auto error = parser.parse(bytes.data() + row_begin, row_end - row_begin, copy).get(value);
  if (error) refuse_json(simdjson::error_message(error));
  const std::string_view text = bytes.substr(row_begin, row_end - row_begin);
  // simdjson 3.0 lets the second half of a surrogate pair stand alone.
  if ((text.find("\\ud") != text.npos || text.find("\\uD") != text.npos) && find_json_fault(text)) refuse_json("");
  if (!value.is_object())
    fail(where(row_begin), str("the row is ", type_name(value)), "one JSON object per row", "correct the row, or remove it");
  row = as<object>(value);
  check_keys();
}

void Rows::Impl::check_keys() const {
  std::vector<std::string_view> keys;
  for (const auto& field : row) keys.push_back(field.key);
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice != keys.end()) fail(where(row_begin, *twice), "the key stands twice in the row", "every key once", "remove one of them");
}

std::optional<element> Rows::Impl::find(std::string_view column) const {
  for (const auto& field : row)
    if (field.key == column) return field.value;
  return {};
}

element Rows::Impl::get(std::string_view column) const {
  const std::optional<element> found = find(column);
  if (found) return *found;
  std::vector<std::string> keys;
  for (const auto& field : row) keys.emplace_back(field.key);
  fail(where(row_begin, column), str("the column is missing; the row has ", join(keys, ", ")), "the same columns in every row",
       "correct the row, or remove it");
}

void Rows::Impl::refuse_type(std::string_view column, const std::string& what, element e, const std::string& allowed) const {
  fail(where(row_begin, column), str(what, " is ", type_name(e)), allowed, "correct the row, or remove it");
}

std::string_view Rows::Impl::text_of(element e, std::string_view column, const std::string& what) const {
  std::string_view text;
  if (e.get(text)) refuse_type(column, what, e, "a text");
  return text;
}

Rows::Rows(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Rows::Rows(Rows&&) noexcept = default;
Rows::~Rows() = default;

Rows::Rows(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->name = path;
  impl_->file.emplace(path);
  impl_->bytes = {reinterpret_cast<const char*>(impl_->file->data()), impl_->file->size()};
  impl_->open();
}

Rows Rows::of_text(std::string text, const std::string& name) {
  auto impl = std::make_unique<Impl>();
  impl->name = name;
  impl->memory = std::move(text);
  impl->bytes = impl->memory;
  impl->open();
  return Rows(std::move(impl));
}

bool Rows::next() {
  Impl& i = *impl_;
  if (!(i.is_array ? i.next_element() : i.next_line())) return false;
  i.parse_row();
  ++i.number;
  if (i.file && i.row_begin - i.forgotten > forget_after) {
    i.file->drop(i.forgotten, i.row_begin);
    i.forgotten = i.row_begin;
  }
  return true;
}

int64_t Rows::number() const { return impl_->number; }

std::vector<std::string> Rows::columns() const {
  std::vector<std::string> names;
  for (const auto& field : impl_->row) names.emplace_back(field.key);
  return names;
}

bool Rows::has(std::string_view column) const {
  const std::optional<element> e = impl_->find(column);
  return e && !e->is_null();
}

bool Rows::is_list(std::string_view column) const {
  const std::optional<element> e = impl_->find(column);
  return e && e->is_array();
}

std::string_view Rows::text(std::string_view column) const { return impl_->text_of(impl_->get(column), column, "the value"); }

std::vector<int64_t> Rows::integers(std::string_view column) const {
  const element e = impl_->get(column);
  if (!e.is_array()) impl_->refuse_type(column, "the value", e, "a list of whole numbers");
  const array list = as<array>(e);
  std::vector<int64_t> out;
  out.reserve(list.size());
  for (const element item : list) {
    int64_t number;
    if (item.get(number)) impl_->refuse_type(column, str("item ", out.size()), item, "a list of whole numbers");
    out.push_back(number);
  }
  return out;
}

std::vector<Message> Rows::messages(std::string_view column, std::string_view role_key, std::string_view content_key) const {
  const std::string allowed = str("a list of objects with the texts \"", role_key, "\" and \"", content_key, "\"");
  const element e = impl_->get(column);
  if (!e.is_array()) impl_->refuse_type(column, "the value", e, allowed);
  std::vector<Message> out;
  for (const element item : as<array>(e)) {
    const std::string what = str("message ", out.size());
    if (!item.is_object()) impl_->refuse_type(column, what, item, allowed);
    std::optional<std::string_view> role, content;
    for (const auto& field : as<object>(item)) {
      const bool is_role = field.key == role_key, is_content = field.key == content_key;
      auto& slot = is_role ? role : content;
      if ((is_role || is_content) && slot)
        refuse(column, str("the key \"", field.key, "\" stands twice in ", what), "every key once", "remove one of them");
      if (is_role || is_content) slot = impl_->text_of(field.value, column, str("\"", field.key, "\" of ", what));
      const bool calls = field.key == "tool_calls" && field.value.is_array() && as<array>(field.value).size() > 0;
      if (calls) refuse(column, str(what, " calls tools, which is not supported yet"), allowed, "remove the row");
    }
    for (const auto& [key, value] : {std::pair(role_key, role), std::pair(content_key, content)})
      if (!value) refuse(column, str(what, " has no \"", key, "\""), allowed, "correct the row, or remove it");
    out.push_back({*role, *content});
  }
  if (out.empty()) refuse(column, "the list of messages is empty", allowed, "remove the row");
  return out;
}

void Rows::refuse(std::string_view column, const std::string& given, const std::string& allowed, const std::string& remedy) const {
  fail(impl_->where(impl_->row_begin, column), given, allowed, remedy);
}

}  // namespace tessera
