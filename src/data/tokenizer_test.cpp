#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "testing/golden.h"

namespace tessera {
namespace {

using nlohmann::json;

// ---- the golden texts

struct GoldenCase {
  const char* name;       // of the golden file
  const char* tokenizer;  // folder or file under ../shared
};

void PrintTo(const GoldenCase& c, std::ostream* out) { *out << c.tokenizer; }

class GoldenTexts : public testing::TestWithParam<GoldenCase> {};

json streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, std::string& rest) {
  TokenStream stream(tokenizer, false);
  json pieces = json::array();
  for (int32_t id : ids) pieces.push_back(stream.next(id));
  rest = stream.rest();
  return pieces;
}

// What differs from the row, "" when nothing does.
std::string difference(const Tokenizer& tokenizer, const json& row) {
  const std::string text = row["text"];
  const std::vector<int32_t> plain = row["ids_plain"];
  std::string rest;
  const json got = {{"ids", tokenizer.encode(text, true)},        {"ids_plain", tokenizer.encode(text, false)},
                    {"decoded", tokenizer.decode(plain, false)},  {"decoded_skip", tokenizer.decode(plain, true)},
                    {"stream", streamed(tokenizer, plain, rest)}, {"stream_rest", rest}};
  for (const auto& [key, value] : got.items())
    if (value != row[key]) return str(json(text).dump(), "\n  ", key, " ", value.dump(), "\n  expected ", row[key].dump());
  return "";
}

TEST_P(GoldenTexts, IdsTextAndStreamAreEqual) {
  NEEDS_SHARED();
  const Tokenizer tokenizer = Tokenizer::load(shared(GetParam().tokenizer));
  std::ifstream file(shared(str("golden/text/tokenize_", GetParam().name, ".jsonl")));
  int rows = 0, different = 0;
  for (std::string line; std::getline(file, line); ++rows) {
    const std::string what = difference(tokenizer, json::parse(line));
    if (what.empty()) continue;
    if (++different <= 5) ADD_FAILURE() << what;
  }
  EXPECT_EQ(rows, 349);
  EXPECT_EQ(different, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Files, GoldenTexts,
    testing::Values(GoldenCase{"stories260k", "models/stories260k"}, GoldenCase{"llama2", "tokenizers/llama2"},
                    GoldenCase{"llama2", "tokenizers/llama2/tokenizer.model"}, GoldenCase{"llama3", "tokenizers/llama3"},
                    GoldenCase{"gpt2_style", "tokenizers/gpt2_style"}, GoldenCase{"qwen2_style", "tokenizers/qwen2_style"},
                    GoldenCase{"smollm_style", "tokenizers/smollm_style"}, GoldenCase{"gemma_style", "tokenizers/gemma_style"},
                    GoldenCase{"llama_metaspace_style", "tokenizers/llama_metaspace_style"},
                    GoldenCase{"phi3_style", "tokenizers/phi3_style"}, GoldenCase{"mistral_tekken", "tokenizers/mistral_tekken"},
                    GoldenCase{"openllama_zh", "tokenizers/openllama_zh"}),
    [](const auto& info) { return str(info.param.name, ends_with(info.param.tokenizer, ".model") ? "_sentencepiece" : ""); });

}  // namespace
}  // namespace tessera
