// Python's pickle format as plain data. A pickle is a program for a small stack machine; this reader knows the opcodes that build values
// and runs nothing: a class or function is a name, and a call or an object is a record of that name with its arguments. Names must be in a
// list that the caller gives; every other one, and every other opcode, is refused by name. Source: CPython, Lib/pickletools.py (protocols 2
// to 5).
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

struct PickleValue {
  enum class Kind : uint8_t { none, boolean, integer, real, text, tuple, list, dict, global, object, persistent };
  Kind kind = Kind::none;
  int64_t integer = 0;  // boolean, integer
  double real = 0;
  std::string text;                       // text (UTF-8); global and object: "module.Name"
  std::vector<const PickleValue*> items;  // tuple, list; dict: key, value, key, value, ...; object: its arguments; persistent: its id
  const PickleValue* state = nullptr;     // object: what was set on it afterwards
};

// Owns the values. collections.OrderedDict becomes a dict. Values may be shared and, in a hostile file, contain themselves: walk them by
// the shape that is expected, never to the end. The memory is at most about 100 times the file's. Throws Error naming `where`.
class Pickle {
 public:
  Pickle(std::span<const std::byte> bytes, const std::string& where, std::span<const std::string_view> allowed_names);
  const PickleValue& root() const { return *root_; }

 private:
  std::deque<PickleValue> values_;
  const PickleValue* root_ = nullptr;
};

// The value when it is of this kind; throws Error that says so otherwise, naming `where` and `what`.
const PickleValue& expect(const PickleValue&, PickleValue::Kind, const std::string& what, const std::string& where);
// An object of this name.
const PickleValue& expect_object(const PickleValue&, std::string_view name, const std::string& what, const std::string& where);
// The value of a text key in a dict, or in the dict that is an object's state; find: nullptr when there is none.
const PickleValue* find(const PickleValue&, std::string_view key);
const PickleValue& get(const PickleValue&, std::string_view key, const std::string& where);
// Whole numbers from 0 of a tuple: sizes, offsets, strides.
std::vector<int64_t> whole_numbers(const PickleValue&, const std::string& what, const std::string& where);

}  // namespace tessera
