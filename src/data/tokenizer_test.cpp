#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "testing/golden.h"
#include "testing/test_folder.h"

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

// ---- what the folder says

TEST(Tokenizer, SpecialTokensAreThoseOfTheConfig) {
  NEEDS_SHARED();
  const Tokenizer llama2 = Tokenizer::load(shared("tokenizers/llama2"));
  EXPECT_EQ(llama2.bos(), 1);
  EXPECT_EQ(llama2.eos(), 2);
  EXPECT_EQ(llama2.pad(), -1);
  EXPECT_EQ(llama2.describe(), "tokenizer.json, BPE, 32000 tokens, BOS <s>, EOS </s>");
  EXPECT_EQ(llama2.files(), (std::vector<std::string>{"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}));
  EXPECT_EQ(Tokenizer::load(shared("tokenizers/llama2/tokenizer.model")).describe(),
            "tokenizer.model, BPE, 32000 tokens, BOS <s>, EOS </s>");

  const Tokenizer llama3 = Tokenizer::load(shared("tokenizers/llama3"));
  EXPECT_EQ(llama3.vocab_size(), 128256);
  EXPECT_EQ(llama3.bos(), 128000);
  EXPECT_EQ(llama3.eos_text(), "<|eot_id|>");
  EXPECT_EQ(llama3.piece(llama3.pad()), "<|finetune_right_pad_id|>");
  EXPECT_TRUE(llama3.is_special(llama3.pad()));
  EXPECT_FALSE(llama3.is_special(llama3.id_of("the")));

  const Tokenizer qwen = Tokenizer::load(shared("tokenizers/qwen2_style"));
  EXPECT_EQ(qwen.bos(), -1);
  EXPECT_EQ(qwen.bos_text(), "");
  EXPECT_EQ(qwen.eos(), qwen.id_of("<|im_end|>"));

  const Tokenizer object_names = Tokenizer::load(shared("tokenizers/openllama_zh"));
  EXPECT_EQ(object_names.bos(), 1);
  EXPECT_EQ(object_names.eos_text(), "</s>");
}

TEST(Tokenizer, TextsComeBackAndThreadsAgree) {
  NEEDS_SHARED();
  const std::string text = read_file(shared("golden/text/README.md"));
  for (const char* folder : {"tokenizers/llama2", "tokenizers/llama3"}) {
    const Tokenizer tokenizer = Tokenizer::load(shared(folder));
    std::vector<std::vector<int32_t>> ids(4);
    std::vector<std::thread> threads;
    for (auto& own : ids) threads.emplace_back([&] { own = tokenizer.encode(text, false); });
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(tokenizer.decode(ids[0], false), text);
    for (const auto& own : ids) EXPECT_EQ(own, ids[0]);
  }
}

// ---- tiny tokenizers, written here

// Letters a, b, c, the mark of a space, four merges, and the bytes of U+00E9 for byte fallback.
constexpr char kTinyModel[] = R"("model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "fuse_unk": true,
  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5, "▁": 6,
  "ab": 7, "bc": 8, "abc": 9, "▁abc": 10, "<0xC3>": 11, "<0xA9>": 12},
  "merges": ["b c", "a b", ["a", "bc"], "▁ abc"]})";
constexpr char kTinyAdded[] =
    R"("added_tokens": [{"id": 1, "content": "<s>", "special": true}, {"id": 2, "content": "</s>", "special": true}])";
constexpr char kTinyRest[] = R"("normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
  "pre_tokenizer": null,
  "post_processor": {"type": "TemplateProcessing", "single": [
      {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
    "special_tokens": {"<s>": {"ids": [1]}, "</s>": {"ids": [2]}}},
  "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
    {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})";

std::string object(const std::vector<std::string>& members) { return str("{", join(members, ", "), "}"); }
std::string tiny_json() { return object({kTinyAdded, kTinyRest, kTinyModel}); }

using Ids = std::vector<int32_t>;

Tokenizer load_json(const TestFolder& folder, const std::string& text) {
  write_file_atomic(folder / "tokenizer.json", text);
  return Tokenizer::load(folder.path());
}

TEST(TinyTokenizer, MergesByRankFallsBackToBytesAndFusesUnknown) {
  const TestFolder folder;
  const Tokenizer tiny = load_json(folder, tiny_json());
  EXPECT_EQ(tiny.encode("abc", false), (Ids{10}));
  EXPECT_EQ(tiny.encode("abc", true), (Ids{1, 10, 2}));
  EXPECT_EQ(tiny.encode("ab bc", false), (Ids{6, 7, 6, 8}));
  EXPECT_EQ(tiny.encode("a\xC3\xA9", false), (Ids{6, 3, 11, 12}));
  EXPECT_EQ(tiny.encode("xyza", false), (Ids{6, 0, 3}));
  EXPECT_EQ(tiny.encode("a<s>a", false), (Ids{6, 3, 1, 6, 3}));
  EXPECT_EQ(tiny.encode("", true), (Ids{1, 2}));
  EXPECT_EQ(tiny.encode("", false), Ids{});
  EXPECT_EQ(tiny.decode({1, 10, 6, 10, 2}, false), "<s> abc  abc</s>");
  EXPECT_EQ(tiny.decode({1, 10, 6, 10, 2}, true), "abc  abc");
  EXPECT_EQ(tiny.decode({3, 11, 4}, false),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(tiny.decode({3, -1, 99, 4}, false), "ab");
}

TEST(TinyTokenizer, BrokenUtf8AndNulDoNoHarm) {
  const TestFolder folder;
  const Tokenizer tiny = load_json(folder, tiny_json());
  EXPECT_EQ(tiny.encode("a\xC3", false), tiny.encode("a\xEF\xBF\xBD", false));
  EXPECT_EQ(tiny.encode("a\xE4\xBD"
                        "b\xFF",
                        false),
            tiny.encode("a\xEF\xBF\xBD"
                        "b\xEF\xBF\xBD",
                        false));
  EXPECT_EQ(tiny.encode(std::string_view("a\0b", 3), false), (Ids{6, 3, 0, 4}));
}

TEST(TinyTokenizer, StreamHoldsIncompleteCharactersBack) {
  const TestFolder folder;
  const Tokenizer tiny = load_json(folder, tiny_json());
  TokenStream stream(tiny, false);
  EXPECT_EQ(stream.next(10), "abc");
  EXPECT_EQ(stream.next(11), "");
  EXPECT_EQ(stream.next(12), "\xC3\xA9");
  EXPECT_EQ(stream.next(10), " abc");
  EXPECT_EQ(stream.next(11), "");
  EXPECT_EQ(stream.rest(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.next(10), "abc") << "rest() begins a new text";
}

TEST(TinyTokenizer, StreamSkipsSpecialTokens) {
  const TestFolder folder;
  const Tokenizer tiny = load_json(folder, tiny_json());
  TokenStream stream(tiny, true);
  EXPECT_EQ(stream.next(1), "");
  EXPECT_EQ(stream.next(10), "abc");
  EXPECT_EQ(stream.next(2), "");
  EXPECT_EQ(stream.rest(), "");
}

TEST(TinyTokenizer, NamesComeFromTheConfigElseFromTheMap) {
  const TestFolder folder;
  write_file_atomic(folder / "special_tokens_map.json", R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})");
  EXPECT_EQ(load_json(folder, tiny_json()).bos(), 1);
  write_file_atomic(folder / "tokenizer_config.json", R"({"bos_token": null, "eos_token": "c", "pad_token": {"content": "<unk>"}})");
  const Tokenizer tiny = Tokenizer::load(folder / "tokenizer.json");
  EXPECT_EQ(tiny.bos(), -1);
  EXPECT_EQ(tiny.eos(), 5);
  EXPECT_EQ(tiny.pad(), 0);
  EXPECT_EQ(tiny.files(), (std::vector<std::string>{"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}));
}

// ---- sentencepiece, written here

std::string bytes_field(int number, const std::string& bytes) { return str(char(number << 3 | 2), char(bytes.size()), bytes); }
std::string number_field(int number, int value) {
  const int tag = number << 3;
  return tag < 128 ? std::string{char(tag), char(value)} : std::string{char(tag | 128), char(tag >> 7), char(value)};
}
std::string piece_field(const std::string& text, float score, int type) {
  std::string bits(4, 0);
  std::memcpy(bits.data(), &score, 4);
  return bytes_field(1, bytes_field(1, text) + char(2 << 3 | 5) + bits + number_field(3, type));
}

// Model type 2 is BPE; piece types: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte.
std::string tiny_model(int model_type = 2, const std::string& character_map = "") {
  std::string out = piece_field("<unk>", 0, 2) + piece_field("<s>", 0, 3) + piece_field("</s>", 0, 3) + piece_field("[X]", 0, 4);
  out += piece_field("ab", -1, 1) + piece_field("bc", 0, 1) + piece_field("abc", -2, 1);
  for (const char* letter : {"a", "b", "c", "▁"}) out += piece_field(letter, -9, 1);
  out += piece_field("<0xC3>", 0, 6) + piece_field("<0xA9>", 0, 6);
  out += bytes_field(2, number_field(3, model_type) + number_field(35, 1));
  return out + bytes_field(3, bytes_field(1, "nmt_nfkc") + bytes_field(2, character_map) + number_field(4, 0));
}

TEST(TinySentencepiece, MergesByScoreAndObeysTheConfig) {
  const TestFolder folder;
  write_file_atomic(folder / "tokenizer.model", tiny_model());
  const Tokenizer plain = Tokenizer::load(folder.path());
  EXPECT_EQ(plain.encode("abc", true), (Ids{1, 9 + 1, 6}));
  EXPECT_EQ(plain.encode("ab bc\xC3\xA9", false), (Ids{10, 4, 10, 5, 11, 12}));
  EXPECT_EQ(plain.encode("a[X]</s>", false), (Ids{10, 7, 3, 2}));
  EXPECT_EQ(plain.decode({10, 4, 3, 2, 11, 12}, true), "ab[X]\xC3\xA9");
  EXPECT_EQ(plain.eos_text(), "</s>");

  write_file_atomic(folder / "tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": true})");
  write_file_atomic(folder / "added_tokens.json", R"({"[PAD]": 13})");
  const Tokenizer configured = Tokenizer::load(folder.path());
  EXPECT_EQ(configured.encode("[PAD]c", true), (Ids{13, 10, 9, 2}));
  EXPECT_EQ(configured.vocab_size(), 14);

  load_json(folder, tiny_json());
  EXPECT_EQ(Tokenizer::load(folder.path()).describe(), "tokenizer.json, BPE, 13 tokens") << "tokenizer.json wins";
}

// ---- what is not supported or broken is named

std::string error_of(const std::string& path) {
  try {
    Tokenizer::load(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_error(const std::string& path, const std::string& words) {
  const std::string error = error_of(path);
  EXPECT_NE(error.find(words), std::string::npos) << "expected: " << words << "\ngot: " << error;
}

TEST(TokenizerErrors, NameTheFileAndThePart) {
  const TestFolder folder;
  expect_error(folder.path(), "no tokenizer in this folder");
  EXPECT_FALSE(Tokenizer::present(folder.path()));
  expect_error(folder / "missing.json", "missing.json");

  const auto expect_json = [&](const std::string& text, const std::string& words) {
    write_file_atomic(folder / "tokenizer.json", text);
    expect_error(folder.path(), "tokenizer.json");
    expect_error(folder.path(), words);
  };
  const std::string tiny = tiny_json();
  expect_json(tiny.substr(0, tiny.size() / 2), "parse error");
  expect_json("[]", "error");
  expect_json(object({R"("model": {"type": "WordPiece", "vocab": {}})"}), "model type WordPiece is not supported yet");
  expect_json(object({kTinyModel, R"("normalizer": {"type": "Lowercase"})"}), "normalizer Lowercase is not supported yet");
  expect_json(object({kTinyModel, R"("pre_tokenizer": {"type": "Punctuation"})"}), "pre_tokenizer Punctuation is not supported yet");
  expect_json(object({kTinyModel, R"("decoder": {"type": "CTC"})"}), "decoder CTC is not supported yet");
  expect_json(object({kTinyModel, R"("post_processor": {"type": "BertProcessing"})"}), "post_processor BertProcessing");
  expect_json(replace_all(tiny, "\"b c\"", "\"b z\""), "needs the token \"z\"");
  expect_json(replace_all(tiny, "\"b c\"", "\"b  c\""), "merge 0 is \"b  c\"");
  expect_json(replace_all(tiny, "\"a\": 3", "\"a\": -3"), "the token a has the id -3");
  expect_json(replace_all(tiny, "\"unk_token\": \"<unk>\"", "\"unk_token\": \"?\""), "unk_token \"?\"");
  const auto split_by = [](const std::string& regex) {
    return object({kTinyModel, R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": ")" + regex + R"("}, "behavior": "Isolated"})"});
  };
  expect_json(split_by("(a"), "regex (a");
  expect_json(split_by("[a[b]]"), "a set inside [...] is not supported yet");
}

TEST(TokenizerErrors, NameWhatASentencepieceModelNeeds) {
  const TestFolder folder;
  const std::string path = folder / "tokenizer.model";
  const auto expect_model = [&](const std::string& bytes, const std::string& words) {
    write_file_atomic(path, bytes);
    expect_error(path, words);
  };
  const std::string tiny = tiny_model();
  for (size_t size : {size_t(0), size_t(1), size_t(9), tiny.size() - 1}) expect_model(tiny.substr(0, size), "tokenizer.model");
  expect_model(tiny_model(1), "model type unigram is not supported yet");
  expect_model(tiny_model(2, "map"), "the normalization rule nmt_nfkc is not supported yet");
}

}  // namespace
}  // namespace tessera
