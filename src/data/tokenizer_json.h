// The JSON files of a tokenizer. Every function throws Error naming the file and the part that is wrong or not supported.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer_pipeline.h"

namespace tessera::tokenizing {

Pipeline read_tokenizer_json(const std::string& path);

// A name in tokenizer_config.json or special_tokens_map.json.
struct TokenName {
  bool stated = false;  // the file has the key
  std::string text;     // "": null
};

struct TokenizerConfig {
  TokenName bos, eos, pad;
  std::optional<bool> add_bos, add_eos;
  std::vector<AddedToken> added;  // added_tokens_decoder
};

TokenizerConfig read_tokenizer_config(const std::string& path);      // a missing file gives the defaults; also for special_tokens_map.json
std::vector<AddedToken> read_added_tokens(const std::string& path);  // added_tokens.json; empty when missing

}  // namespace tessera::tokenizing
