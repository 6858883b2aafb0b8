// Both readers of a tokenizer.json give the same lists and the same rest; what is not as it should be goes to the one that names faults.
#include "data/tokenizer_lists.h"

#include <gtest/gtest.h>

#include <map>

#include "core/text.h"

namespace tessera::tokenizing {
namespace {

using nlohmann::json;

std::string file_text(const std::string& merges, const std::string& added = R"("<s>")") {
  return str(R"({"version": "1.0", "added_tokens": [{"id": 7, "content": )", added,
             R"(}], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\\ud": 3, "\u00e9": 4, "é\"": 5, "🙂": 6}, "merges": )",
             merges, R"(, "unk_token": null}, "decoder": {"type": "ByteLevel"}})");
}

std::map<std::string, int64_t> pieces_of(const TokenizerFile& file) {
  std::map<std::string, int64_t> out;
  for (const auto& [piece, id] : file.vocabulary()) EXPECT_TRUE(out.emplace(piece, id).second) << piece;
  return out;
}

std::vector<std::string> merges_of(const TokenizerFile& file) {
  std::vector<std::string> out;
  for (const MergeText& m : file.merges()) out.push_back(str(m.left, "|", m.right, m.one_text ? "|one" : ""));
  return out;
}

bool was_quick(const TokenizerFile& file) { return !file.rest().at("model").contains("vocab"); }

TEST(TokenizerFile, BothReadersAgree) {
  const std::string merges = R"(["a b", ["a b", "c"], "é \"x"])";
  const TokenizerFile quick(file_text(merges)), slow(file_text(merges, R"("\ud83d\ude42")"));  // escaped pairs are for the slow one
  EXPECT_TRUE(was_quick(quick));
  EXPECT_FALSE(was_quick(slow));
  EXPECT_EQ(pieces_of(quick),
            (std::map<std::string, int64_t>{{"a", 0}, {"b", 1}, {"ab", 2}, {"\\ud", 3}, {"é", 4}, {"é\"", 5}, {"🙂", 6}}));
  EXPECT_EQ(pieces_of(quick), pieces_of(slow));
  EXPECT_EQ(merges_of(quick), (std::vector<std::string>{"a b||one", "a b|c", "é \"x||one"}));
  EXPECT_EQ(merges_of(quick), merges_of(slow));
  EXPECT_TRUE(quick.has_merges() && slow.has_merges());

  json expected = json::parse(file_text(merges));
  for (const char* list : {"vocab", "merges"}) expected["model"].erase(list);
  EXPECT_EQ(quick.rest(), expected);
  EXPECT_EQ(slow.rest()["added_tokens"][0]["content"], "🙂");
}

TEST(TokenizerFile, OddFilesAreReadWhole) {
  for (const char* odd : {R"({"model": {"vocab": {"a": 1.5}, "merges": []}})", R"({"model": {"vocab": {"a": 1}, "merges": [["a"]]}})",
                          R"({"model": {"vocab": [], "merges": []}})", R"({"model": {"vocab": {}, "merges": {}}})", R"({"model": []})",
                          R"({"model": {"vocab": {"a": 1}}})", "[]", "3"}) {
    const TokenizerFile file{std::string(odd)};
    EXPECT_EQ(file.rest(), json::parse(odd)) << odd;
  }
  EXPECT_THROW(TokenizerFile(R"({"model": {"vocab": {"\udc00": 1}, "merges": []}})"), json::exception);  // half a pair
  EXPECT_THROW(TokenizerFile(R"({"model": )"), json::exception);
  EXPECT_THROW(TokenizerFile(R"({"model": {}})").vocabulary(), json::exception);
  EXPECT_THROW(TokenizerFile(R"({"model": {"vocab": {}, "merges": [3]}})").merges(), json::exception);
  EXPECT_FALSE(TokenizerFile(R"({"model": {"vocab": {}}})").has_merges());
}

}  // namespace
}  // namespace tessera::tokenizing
