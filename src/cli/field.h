// Field: one thing a user can choose, said once. Its line gives name, place, help, other spellings, limits and the defaults of the
// upstream programs; parsing, --help, configuration files and records follow from it.
//
//   FieldList fields("train", "usage: ...");
//   fields.group("Steps");
//   fields.add("lr", &options.lr, "size of a step ...").also({"learning_rate"}).upstream("1e-5", "2e-5").above(0);
//
// The default of a field is what its place holds when it is added. Names are written with '_'; users may write '-'.
#pragma once
#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tessera {

using Place = std::variant<bool*, int64_t*, uint64_t*, double*, std::string*, std::vector<std::string>*>;

// A value that may be written, and what it stands for. Not built: the value is known, and refused by name.
struct Choice {
  std::string spelled, means;
  bool built = true;
};

struct Limits {
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
  bool low_is_out = false, high_is_out = false;
  std::optional<double> or_value;  // also allowed
};

// One value as a user wrote it.
struct Given {
  std::string name;                 // with '_', without dashes: learning_rate
  std::string where;                // as typed: "--learning-rate", or "run.yaml line 3: learning_rate"
  std::vector<std::string> values;  // empty: a flag without a value
};

class Field {
 public:
  Field(std::string group, std::string name, Place place, std::string help);

  Field& also(std::vector<std::string> names);               // other spellings
  Field& upstream(std::string fsdp_qlora, std::string trl);  // their defaults, where they differ from ours ("": as ours)
  Field& one_of(std::vector<std::string> values);            // the allowed values
  Field& means(std::string value, std::vector<std::string> spellings);
  Field& not_yet(std::vector<std::string> values);  // known, refused by name
  Field& or_text(std::string what);                 // beside the values of one_of and means any text is allowed
  Field& above(double);
  Field& from(double);
  Field& below(double);
  Field& up_to(double);
  Field& or_value(double);  // allowed beside the range
  Field& switches();        // a text that is true, false or a value of one_of: written as a bool is
  Field& needed();          // may not stay empty
  Field& sets_others();     // a spelling that becomes another field: its own default says nothing

  // Stores what was given. Throws Error naming the flag as typed. A bare flag is true for a bool.
  void set(const Given&);
  bool is_bool() const { return std::holds_alternative<bool*>(place_) || switches_; }
  bool takes(std::string_view word) const;  // of a bool: the word after the flag is its value
  bool is_list() const { return std::holds_alternative<std::vector<std::string>*>(place_); }
  std::string text() const;     // the value now, readable by set()
  std::string allowed() const;  // "fp32, bf16", "a number above 0"
  bool answers_to(std::string_view name) const;
  bool is_not_yet(const Given&) const;  // the value is known and not built

  const std::string& group() const { return group_; }
  const std::string& name() const { return name_; }
  const std::string& help() const { return help_; }
  const std::vector<std::string>& aliases() const { return aliases_; }
  const Place& place() const { return place_; }
  bool is_needed() const { return needed_; }
  bool shows_default() const { return !sets_others_; }
  // "tessera", "fsdp_qlora" or "trl": the default as text.
  std::string default_of(std::string_view column) const;

 private:
  std::string one_value(const Given&) const;
  std::string chosen(const Given&, const std::string& value) const;
  double number(const Given&, const std::string& value, bool whole) const;
  void set_list(const Given&, std::vector<std::string>& list) const;
  [[noreturn]] void refuse(const Given&, const std::string& value) const;

  std::string group_, name_, help_;
  Place place_;
  std::string default_;
  std::vector<std::string> aliases_;
  std::string fsdp_qlora_, trl_;
  std::vector<Choice> choices_;
  std::string or_text_;
  Limits limits_;
  bool needed_ = false, sets_others_ = false, switches_ = false;
};

// The fields of one command, in the order of its help. Holds pointers into the options it was made for.
class FieldList {
 public:
  // command: "tokenize". about: the head of its --help, from "usage: ..." on.
  FieldList(std::string command, std::string about) : command_(std::move(command)), about_(std::move(about)) {}
  const std::string& command() const { return command_; }
  const std::string& about() const { return about_; }
  void group(std::string title) { group_ = std::move(title); }
  Field& add(std::string name, Place place, std::string help);  // the reference stays good
  Field* find(std::string_view name);                           // by name or other spelling; null when there is none
  std::vector<std::string> names() const;                       // all spellings
  auto begin() { return fields_.begin(); }
  auto end() { return fields_.end(); }
  auto begin() const { return fields_.begin(); }
  auto end() const { return fields_.end(); }

 private:
  std::string command_, about_, group_;
  std::deque<Field> fields_;
};

// true, false, yes, no, on, off, y, n, t, f, 1, 0 in any case; nothing for other text.
std::optional<bool> read_bool(std::string_view text);

}  // namespace tessera
