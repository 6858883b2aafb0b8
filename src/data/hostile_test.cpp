// Tokenizers and rows from strangers: patterns that backtrack without end, steps that make a text grow, ids far away, deep nesting.
#include <gtest/gtest.h>

#include "core/text.h"
#include "data/rows.h"
#include "data/tokenizer.h"
#include "io/file.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

// A tokenizer.json with these parts beside its model.
std::string file_with(const std::string& parts, const std::string& vocab = "") {
  return R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2)" + vocab + R"(}, "merges": ["a b"]})" +
         (parts.empty() ? "" : ", ") + parts + "}";
}

std::string quoted(std::string pattern) { return "\"" + replace_all(std::move(pattern), "\\", "\\\\") + "\""; }

std::string split_at(const std::string& pattern) {
  return R"("pre_tokenizer": {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": )" + quoted(pattern) + "}}";
}

// What loading the file, and then reading and printing a text, say; "" when all goes well.
std::string refusal(const std::string& file, const std::string& text = "aabb aabb") {
  const TestFolder folder;
  write_file_atomic(folder / "tokenizer.json", file);
  return error_of([&] {
    const Tokenizer tokenizer = Tokenizer::load(folder.path());
    tokenizer.decode(tokenizer.encode(text, true), false);
  });
}

void expect_refused(const std::string& file, const std::string& part, const std::string& text = "aabb aabb") {
  const std::string error = refusal(file, text);
  EXPECT_NE(error.find(part), error.npos) << file.substr(0, 300) << ": " << error;
  EXPECT_NE(error.find("\n  do this: "), error.npos);
}

TEST(HostileTokenizer, PlainFileIsRead) { EXPECT_EQ(refusal(file_with("")), ""); }

TEST(HostileTokenizer, PatternsThatBacktrackWithoutEndAreRefused) {
  const std::string text(60, 'a');
  for (const char* slow : {"(a+)+$(?<=b)", "((a*)*)*[bc]", "(?:(?:a?){40}){40}[bc]", "(?=(a+)+[bc])", "(.*)*(.*)*(.*)*[bc]"})
    expect_refused(file_with(split_at(slow)), "gave up", text);
  expect_refused(file_with(split_at(std::string(20000, 'a'))), "a regex of 20000 bytes");
  expect_refused(file_with(split_at(std::string(5000, '('))), "regex ");
  expect_refused(file_with(split_at("((((a{999}){999}){999}){999})")), "regex ");
}

// One match may take a million steps, which long runs of one kind do not need.
TEST(HostileTokenizer, LongRunsAreNoAttack) {
  const std::string gpt2 = R"('s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  for (const char letter : {'a', ' ', '1', '-', '\n'}) EXPECT_EQ(refusal(file_with(split_at(gpt2)), std::string(3'000'000, letter)), "");
}

TEST(HostileTokenizer, StepsThatMakeATextGrowAreRefused) {
  const auto repeated = [](const std::string& step, int times) {
    std::string all = step;
    for (int i = 1; i < times; ++i) all += ", " + step;
    return all;
  };
  const std::string grow = R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"})";
  expect_refused(file_with(R"("normalizer": {"type": "Sequence", "normalizers": [)" + repeated(grow, 12) + "]}"), "steps make a text");
  expect_refused(file_with(R"("decoder": {"type": "Sequence", "decoders": [)" + repeated(grow, 12) + "]}"), "steps make a text");
  const std::string prepend = R"({"type": "Prepend", "prepend": ")" + std::string(100'000, 'a') + "\"}";
  expect_refused(file_with(R"("normalizer": {"type": "Sequence", "normalizers": [)" + repeated(prepend, 20) + "]}"), "steps make a text");
  const std::string letters = R"({"type": "ByteLevel", "use_regex": false})";
  expect_refused(file_with(R"("pre_tokenizer": {"type": "Sequence", "pretokenizers": [)" + repeated(letters, 40) + "]}"),
                 "steps make a text");
}

TEST(HostileTokenizer, NumbersAreWithinBounds) {
  expect_refused(file_with("", R"(, "z": 16777215)"), "ids up to 16777215");
  for (const char* id : {"16777216", "-1", "4294967296", "9223372036854775808", "1e300", "1.5", "\"1\""}) {
    EXPECT_NE(refusal(file_with("", str(", \"z\": ", id))), "") << id;
    EXPECT_NE(refusal(file_with(str(R"("added_tokens": [{"content": "x", "id": )", id, "}]"))), "") << id;
  }
  for (const char* start : {"-1", "2147483648", "1e300", "\"1\"", "18446744073709551615"})
    EXPECT_NE(refusal(file_with(str(R"("decoder": {"type": "Strip", "content": " ", "stop": 0, "start": )", start, "}"))), "") << start;
  expect_refused(file_with(R"("decoder": {"type": "Strip", "content": "", "start": 2147483647, "stop": 0})"), "Strip");
}

TEST(HostileTokenizer, DeepNestingIsRefused) {
  std::string deep = "null";
  for (int i = 0; i < 100; ++i) deep = R"({"type": "Sequence", "normalizers": [)" + deep + "]}";
  expect_refused(file_with("\"normalizer\": " + deep), "a Sequence inside");
  std::string deeper;
  for (int i = 0; i < 200'000; ++i) deeper += R"({"type": "Sequence", "normalizers": [)";
  EXPECT_NE(refusal(file_with("\"normalizer\": " + deeper)), "");
  for (int i = 0; i < 200'000; ++i) deeper += "]}";
  EXPECT_NE(refusal(file_with("\"normalizer\": " + deeper)), "");
  EXPECT_NE(refusal(std::string(1'000'000, '[')), "");
}

TEST(HostileTokenizer, ChatTemplatesAreNotEvaluated) {
  const TestFolder folder;
  write_file_atomic(folder / "tokenizer.json", file_with(""));
  write_file_atomic(folder / "tokenizer_config.json",
                    R"({"chat_template": "{% for i in range(10**9) %}{{ cycler.__init__.__globals__.os.system('false') }}{% endfor %}",
                        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}})");
  EXPECT_EQ(error_of([&] { Tokenizer::load(folder.path()); }), "");
}

TEST(HostileRows, DeepNestingIsRefused) {
  const std::string deep(1'000'000, '[');
  for (const std::string& text : {deep, "{\"text\": " + deep, "[{\"text\": " + deep, deep + std::string(1'000'000, ']')}) {
    const std::string error = error_of([&] {
      Rows rows = Rows::of_text(text, "rows.jsonl");
      while (rows.next()) {
      }
    });
    EXPECT_NE(error.find("rows.jsonl: line 1"), error.npos) << error.substr(0, 300);
  }
}

}  // namespace
}  // namespace tessera
