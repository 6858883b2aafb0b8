#include "cli/field.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

// Of a list, commas separate names; a regular expression is one entry, whatever commas it has.
std::vector<std::string> list_entries(const std::string& text) {
  const bool names = text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-, ") == std::string::npos;
  std::vector<std::string> entries;
  for (const auto& part : names ? split(text, ',') : std::vector<std::string>{text})
    if (!trim(part).empty()) entries.push_back(trim(part));
  return entries;
}

std::string bound(double v) { return v == std::floor(v) && std::abs(v) < 1e15 ? str(int64_t(v)) : str(v); }

bool inside(const Limits& limits, double v) {
  if (limits.or_value && v == *limits.or_value) return true;
  return (limits.low_is_out ? v > limits.low : v >= limits.low) && (limits.high_is_out ? v < limits.high : v <= limits.high);
}

std::string describe(const Limits& limits, bool whole) {
  std::string out = whole ? "a whole number" : "a number";
  if (std::isfinite(limits.low)) out += str(limits.low_is_out ? " above " : " from ", bound(limits.low));
  if (std::isfinite(limits.high)) out += str(limits.high_is_out ? " below " : " up to ", bound(limits.high));
  if (limits.or_value) out += str(", or ", bound(*limits.or_value));
  return out;
}

// 2e-5, where str() has 2e-05.
std::string number_text(double v) { return replace_all(str(v), "e-0", "e-"); }

struct PlaceText {
  std::string operator()(const double* value) const { return number_text(*value); }
  std::string operator()(const std::vector<std::string>* list) const { return join(*list, ","); }
  std::string operator()(const auto* value) const { return str(*value); }
};

}  // namespace

std::optional<bool> read_bool(std::string_view text) {
  const std::string word = lower(text);
  for (const char* yes : {"true", "yes", "on", "y", "t", "1"})
    if (word == yes) return true;
  for (const char* no : {"false", "no", "off", "n", "f", "0"})
    if (word == no) return false;
  return std::nullopt;
}

Field::Field(std::string group, std::string name, Place place, std::string help)
    : group_(std::move(group)), name_(std::move(name)), help_(std::move(help)), place_(place) {
  default_ = text();
}

Field& Field::also(std::vector<std::string> names) {
  aliases_.insert(aliases_.end(), names.begin(), names.end());
  return *this;
}
Field& Field::upstream(std::string fsdp_qlora, std::string trl) {
  fsdp_qlora_ = std::move(fsdp_qlora), trl_ = std::move(trl);
  return *this;
}
Field& Field::one_of(std::vector<std::string> values) {
  for (const auto& v : values) choices_.push_back({v, v});
  return *this;
}
Field& Field::means(std::string value, std::vector<std::string> spellings) {
  for (const auto& s : spellings) choices_.push_back({s, value});
  return *this;
}
Field& Field::not_yet(std::vector<std::string> values) {
  for (const auto& v : values) choices_.push_back({v, v, false});
  return *this;
}
Field& Field::or_text(std::string what) {
  or_text_ = std::move(what);
  return *this;
}
Field& Field::above(double v) {
  limits_.low = v, limits_.low_is_out = true;
  return *this;
}
Field& Field::from(double v) {
  limits_.low = v;
  return *this;
}
Field& Field::below(double v) {
  limits_.high = v, limits_.high_is_out = true;
  return *this;
}
Field& Field::up_to(double v) {
  limits_.high = v;
  return *this;
}
Field& Field::or_value(double v) {
  limits_.or_value = v;
  return *this;
}
Field& Field::switches() {
  switches_ = true;
  return one_of({"true", "false"}).means("true", {"yes", "on", "y", "t", "1"}).means("false", {"no", "off", "n", "f", "0"});
}
Field& Field::needed() {
  needed_ = true;
  return *this;
}
Field& Field::sets_others() {
  sets_others_ = true;
  return *this;
}

bool Field::answers_to(std::string_view name) const {
  return name == name_ || std::find(aliases_.begin(), aliases_.end(), name) != aliases_.end();
}

bool Field::takes(std::string_view word) const {
  return read_bool(word) || std::any_of(choices_.begin(), choices_.end(), [&](const Choice& c) { return c.spelled == lower(word); });
}

bool Field::is_not_yet(const Given& given) const {
  return given.values.size() == 1 && std::any_of(choices_.begin(), choices_.end(), [&](const Choice& c) {
           return !c.built && lower(c.spelled) == lower(trim(given.values[0]));
         });
}

std::string Field::default_of(std::string_view column) const {
  if (column == "fsdp_qlora" && !fsdp_qlora_.empty()) return fsdp_qlora_;
  if (column == "trl" && !trl_.empty()) return trl_;
  return default_;
}

std::string Field::text() const { return std::visit(PlaceText{}, place_); }

std::string Field::allowed() const {
  std::vector<std::string> values;
  for (const auto& c : choices_)
    if (c.built && c.spelled == c.means) values.push_back(c.spelled);
  for (const auto& c : choices_)
    if (c.built && c.spelled != c.means && !switches_) values.push_back(c.means.empty() ? c.spelled : str(c.spelled, " (= ", c.means, ")"));
  if (!or_text_.empty()) values.push_back(or_text_);
  if (!values.empty()) return join(values, ", ");
  if (is_bool()) return "true, false";
  if (std::holds_alternative<double*>(place_)) return describe(limits_, false);
  if (std::holds_alternative<std::string*>(place_)) return "a text";
  if (is_list()) return "names separated by commas";
  return describe(limits_, true);
}

void Field::refuse(const Given& given, const std::string& value) const {
  std::vector<std::string> known;
  for (const auto& c : choices_)
    if (c.built) known.push_back(c.spelled);
  const std::string near = nearest(value, known);
  fail(given.where, str("\"", value, "\" is not a value of this option"), allowed(),
       near.empty() ? str("give one of these to ", name_) : str("write ", near));
}

std::string Field::one_value(const Given& given) const {
  if (given.values.empty()) fail(given.where, "no value is given", allowed(), "write the value after it");
  if (given.values.size() > 1)
    fail(given.where, str("several values are given: ", join(given.values, " ")), "one value", "keep one of them");
  return trim(given.values[0]);
}

std::string Field::chosen(const Given& given, const std::string& value) const {
  if (choices_.empty()) return value;
  for (const bool any_case : {false, true})
    for (const auto& c : choices_) {
      if (any_case ? lower(c.spelled) != lower(value) : c.spelled != value) continue;
      if (c.built) return c.means;
      fail(given.where, str("\"", value, "\" is not yet built"), allowed(), "take one of the allowed values");
    }
  if (!or_text_.empty()) return value;
  refuse(given, value);
}

double Field::number(const Given& given, const std::string& value, bool whole) const {
  double v = 0;
  const char* end = value.data() + value.size();
  const auto result = std::from_chars(value.data(), end, v);
  const bool read = result.ec == std::errc() && result.ptr == end && std::isfinite(v);
  if (!read || (whole && (v != std::floor(v) || std::abs(v) > 9007199254740992.0)) || !inside(limits_, v))
    fail(given.where, str("\"", value, "\""), describe(limits_, whole),
         read ? "take a number in this range" : "write a plain number, as 3 or 1e-4");
  return v;
}

void Field::set_list(const Given& given, std::vector<std::string>& list) const {
  list.clear();
  for (const auto& value : given.values)
    for (const auto& entry : list_entries(given.values.size() == 1 ? chosen(given, trim(value)) : value)) list.push_back(entry);
}

void Field::set(const Given& given) {
  if (auto* list = std::get_if<std::vector<std::string>*>(&place_)) return set_list(given, **list);
  if (auto* flag = std::get_if<bool*>(&place_)) {
    if (given.values.empty()) return void(**flag = true);
    const auto value = read_bool(one_value(given));
    if (!value) refuse(given, one_value(given));
    **flag = *value;
    return;
  }
  if (switches_ && given.values.empty()) return set({given.name, given.where, {"true"}});
  const std::string value = one_value(given);
  if (auto* text = std::get_if<std::string*>(&place_)) **text = chosen(given, value);
  if (auto* real = std::get_if<double*>(&place_)) **real = number(given, value, false);
  if (auto* whole = std::get_if<int64_t*>(&place_)) **whole = int64_t(number(given, value, true));
  if (auto* natural = std::get_if<uint64_t*>(&place_)) **natural = uint64_t(number(given, value, true));
}

Field& FieldList::add(std::string name, Place place, std::string help) {
  return fields_.emplace_back(group_, std::move(name), place, std::move(help));
}

Field* FieldList::find(std::string_view name) {
  for (auto& f : fields_)
    if (f.answers_to(name)) return &f;
  return nullptr;
}

std::vector<std::string> FieldList::names() const {
  std::vector<std::string> all;
  for (const auto& f : fields_) {
    all.push_back(f.name());
    all.insert(all.end(), f.aliases().begin(), f.aliases().end());
  }
  return all;
}

}  // namespace tessera
