#include "data/tokenizer_lists.h"

#include <algorithm>

#include "core/text.h"

namespace tessera::tokenizing {
namespace {

using nlohmann::json;
using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

bool is_merge(element value) {
  array pair;
  return value.is_string() || (!value.get(pair) && pair.size() == 2 && pair.at(0).is_string() && pair.at(1).is_string());
}

// Whether the text writes a code unit from D000 on as an escape, as halves of surrogate pairs are.
bool escapes_surrogates(std::string_view text) {
  for (size_t at = text.find('\\'); at < text.size(); at = text.find('\\', at + 2))
    if (at + 2 < text.size() && text[at + 1] == 'u' && (text[at + 2] == 'd' || text[at + 2] == 'D')) return true;
  return false;
}

[[noreturn]] void refuse_type(const json& value) {
  throw json::type_error::create(302, str("type must be a whole number, but is ", value.type_name()), &value);
}

json copied(element value) { return json::parse(simdjson::minify(value)); }

}  // namespace

// The library's own conversion takes fractions and numbers of any size, which is undefined for some.
int64_t whole_number(const json& value) {
  if (!value.is_number_integer()) refuse_type(value);
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(INT64_MAX)) refuse_type(value);
  return value.get<int64_t>();
}

TokenizerFile::TokenizerFile(const std::string& text) {
  quick_ = read_quickly(text);
  if (!quick_) rest_ = json::parse(text);
}

// False unless both lists are there and hold nothing but what they should. Escaped halves of surrogate pairs are left to the other reader:
// simdjson 3.0 lets the second half stand alone.
bool TokenizerFile::read_quickly(const std::string& text) {
  if (escapes_surrogates(text)) return false;
  object root, model;
  if (parser_.parse(text).get(root) || root["model"].get(model)) return false;
  if (model["vocab"].get(vocabulary_) || model["merges"].get(merges_)) return false;
  for (const auto& field : vocabulary_)
    if (!field.value.is_int64()) return false;
  if (!std::all_of(merges_.begin(), merges_.end(), is_merge)) return false;
  rest_ = json::object();
  json rest_of_model = json::object();
  for (const auto& field : model)
    if (field.key != "vocab" && field.key != "merges") rest_of_model[std::string(field.key)] = copied(field.value);
  for (const auto& field : root)
    if (field.key != "model") rest_[std::string(field.key)] = copied(field.value);
  rest_["model"] = std::move(rest_of_model);
  return true;
}

std::vector<std::pair<std::string_view, int64_t>> TokenizerFile::vocabulary() const {
  std::vector<std::pair<std::string_view, int64_t>> out;
  if (quick_) {
    for (const auto& field : vocabulary_) out.emplace_back(field.key, int64_t(field.value));
    return out;
  }
  for (const auto& [piece, id] : rest_.at("model").at("vocab").get_ref<const json::object_t&>()) out.emplace_back(piece, whole_number(id));
  return out;
}

std::vector<MergeText> TokenizerFile::merges() const {
  std::vector<MergeText> out;
  if (quick_) {
    for (const element merge : merges_) {
      std::string_view whole;
      if (!merge.get(whole)) {
        out.push_back({whole, {}, true});
      } else {
        const array pair = merge;
        out.push_back({pair.at(0), pair.at(1), false});
      }
    }
    return out;
  }
  const auto text_of = [](const json& value) -> std::string_view { return value.get_ref<const std::string&>(); };
  for (const json& merge : rest_.at("model").at("merges")) {
    if (merge.is_string()) {
      out.push_back({text_of(merge), {}, true});
    } else {
      out.push_back({text_of(merge.at(0)), text_of(merge.at(1)), false});
    }
  }
  return out;
}

bool TokenizerFile::has_merges() const { return quick_ || rest_.at("model").contains("merges"); }

}  // namespace tessera::tokenizing
