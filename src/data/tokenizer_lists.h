// A tokenizer.json in two parts: the vocabulary and the merges, which are long and read quickly, and the rest as a JSON value. A file that
// the quick reader does not take for certain is read whole by the other one, whose errors name what is wrong. Inside data only.
#pragma once
#include <simdjson.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::tokenizing {

struct MergeText {
  std::string_view left, right;
  bool one_text = false;  // "left right", whole in `left`
};

// Throws nlohmann::json::exception for what is no whole number of 64 bits.
int64_t whole_number(const nlohmann::json& value);

// Owns the texts that its views look at; not movable.
class TokenizerFile {
 public:
  explicit TokenizerFile(const std::string& text);  // throws nlohmann::json::exception when it is not JSON
  TokenizerFile(const TokenizerFile&) = delete;

  const nlohmann::json& rest() const { return rest_; }  // all of the file, or all but model.vocab and model.merges
  // Throw nlohmann::json::exception when the list is missing or holds something else.
  std::vector<std::pair<std::string_view, int64_t>> vocabulary() const;
  std::vector<MergeText> merges() const;
  bool has_merges() const;

 private:
  bool read_quickly(const std::string& text);

  nlohmann::json rest_;  // sorted keys: insertion stays fast with 128,000 of them
  simdjson::dom::parser parser_;
  simdjson::dom::object vocabulary_;
  simdjson::dom::array merges_;
  bool quick_ = false;
};

}  // namespace tessera::tokenizing
