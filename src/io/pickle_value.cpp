#include "core/error.h"
#include "core/text.h"
#include "io/pickle.h"

namespace tessera {
namespace {

using Kind = PickleValue::Kind;

constexpr const char* remedy = "give a file that PyTorch has written, and copy it again if it is damaged";
constexpr size_t max_numbers = 64;

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::none:
      return "None";
    case Kind::boolean:
      return "a bool";
    case Kind::integer:
      return "an integer";
    case Kind::real:
      return "a float";
    case Kind::text:
      return "a text";
    case Kind::tuple:
      return "a tuple";
    case Kind::list:
      return "a list";
    case Kind::dict:
      return "a dict";
    case Kind::global:
      return "a class or function";
    case Kind::object:
      return "an object";
    case Kind::persistent:
      return "a storage";
  }
  return "";
}

}  // namespace

const PickleValue& expect(const PickleValue& value, PickleValue::Kind kind, const std::string& what, const std::string& where) {
  if (value.kind != kind) fail(where, str(what, " is ", name_of(value.kind)), name_of(kind), remedy);
  return value;
}

const PickleValue& expect_object(const PickleValue& value, std::string_view name, const std::string& what, const std::string& where) {
  if (value.kind != Kind::object || value.text != name)
    fail(where, str(what, " is ", value.text.empty() ? name_of(value.kind) : value.text), std::string(name), remedy);
  return value;
}

const PickleValue* find(const PickleValue& value, std::string_view key) {
  const PickleValue* dict = value.kind == Kind::object ? value.state : &value;
  if (!dict || dict->kind != Kind::dict) return nullptr;
  for (size_t i = 0; i < dict->items.size(); i += 2)
    if (dict->items[i]->kind == Kind::text && dict->items[i]->text == key) return dict->items[i + 1];
  return nullptr;
}

const PickleValue& get(const PickleValue& value, std::string_view key, const std::string& where) {
  if (const PickleValue* found = find(value, key)) return *found;
  fail(where, str(value.text.empty() ? name_of(value.kind) : value.text, " without ", key), "what PyTorch writes", remedy);
}

std::vector<int64_t> whole_numbers(const PickleValue& value, const std::string& what, const std::string& where) {
  std::vector<int64_t> out;
  const auto& items = expect(value, Kind::tuple, what, where).items;
  if (items.size() > max_numbers) fail(where, str(what, " has ", items.size(), " numbers"), str("at most ", max_numbers), remedy);
  for (const PickleValue* item : items) {
    if (expect(*item, Kind::integer, what, where).integer < 0) fail(where, str(what, " holds ", item->integer), "numbers from 0", remedy);
    out.push_back(item->integer);
  }
  return out;
}

}  // namespace tessera
