#include "io/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

// The message of the error that `text` gives, "" when it is accepted.
std::string error_of(const std::string& text) {
  try {
    parse_json(text, "a.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string nested(int levels) { return std::string(size_t(levels), '[') + std::string(size_t(levels), ']'); }

TEST(Json, KeepsOrderAndTypes) {
  const Json v = parse_json(R"({"z": 1, "a": [-2, 18446744073709551615, 2.5, true, null, "\u00e9\n"], "m": {"k": {}}})", "a.json");
  EXPECT_EQ(v.begin().key(), "z");
  EXPECT_TRUE(v["z"].is_number_unsigned());
  EXPECT_EQ(v["a"][0].get<int>(), -2);
  EXPECT_EQ(v["a"][1].get<uint64_t>(), UINT64_MAX);
  EXPECT_EQ(v["a"][5].get<std::string>(), "é\n");
  EXPECT_EQ(v.dump(), R"({"z":1,"a":[-2,18446744073709551615,2.5,true,null,"é\n"],"m":{"k":{}}})");
  EXPECT_EQ(parse_json("7", "a.json").get<int>(), 7);
}

TEST(Json, NamesFileLineAndColumn) {
  EXPECT_NE(error_of("{\n  \"a\": 1,\n  \"b\": oops\n}").find("a.json, line 3, column 8: syntax error"), std::string::npos)
      << error_of("{\n  \"a\": 1,\n  \"b\": oops\n}");
  EXPECT_NE(error_of("[1, 2").find("line 1, column 6"), std::string::npos) << error_of("[1, 2");
}

TEST(Json, RefusesWhatIsNotStrictJson) {
  for (const char* text : {"",   "  ",  "{",      "{\"a\":1,}", "[1,]",      "{'a':1}", "nan",   "NaN",     "[Infinity]",  "01", "+1",
                           "1.", "\"a", "\"\n\"", "// c\n1",    "{\"a\" 1}", "[1 2]",   "1e999", "\"\\x\"", "\"\\ud800\"", "tru"}) {
    EXPECT_NE(error_of(text).find("a.json, line "), std::string::npos) << text << " -> " << error_of(text);
  }
}

TEST(Json, RefusesDuplicateKeys) {
  const std::string error = error_of("{\"a\": {\"b\": 1},\n \"c\": 2,\n \"a\": 3}");
  EXPECT_NE(error.find("line 3"), std::string::npos) << error;
  EXPECT_NE(error.find("the key \"a\" is there twice"), std::string::npos) << error;
  EXPECT_EQ(error_of(R"({"a": {"a": 1}, "b": {"a": 2}})"), "");
}

TEST(Json, RefusesTrailingText) {
  EXPECT_NE(error_of("{} x").find("line 1, column 4"), std::string::npos) << error_of("{} x");
  EXPECT_NE(error_of("1 2"), "");
  EXPECT_NE(error_of(std::string("{}\0", 3)).find("column 3: a zero byte"), std::string::npos);
  EXPECT_NE(error_of(std::string("\0{}", 3)).find("column 1: a zero byte"), std::string::npos);
  EXPECT_EQ(error_of("{} \n\t "), "");
}

TEST(Json, RefusesDeepNesting) {
  EXPECT_EQ(error_of(nested(512)), "");
  EXPECT_NE(error_of(nested(513)).find("more than 512 levels"), std::string::npos);
  EXPECT_NE(error_of(std::string(1'000'000, '[')).find("more than 512 levels"), std::string::npos);
}

TEST(Json, RefusesInvalidUtf8) {
  for (const char* text : {"\"\xff\"", "\"\xc3\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf5\x80\x80\x80\"", "{\"\xfe\": 1}", "\xe9"}) {
    EXPECT_NE(error_of(text).find("a.json, line 1"), std::string::npos);
  }
}

TEST(Json, SkipsAByteOrderMark) {
  EXPECT_EQ(parse_json("\xef\xbb\xbf{\"a\": 1}", "a.json")["a"].get<int>(), 1);
  EXPECT_NE(error_of("\xef\xbb{}"), "");
  EXPECT_NE(error_of("\xff\xfe{"), "");
}

TEST(Json, LargeObjectsAreRead) {
  std::string text = "{\"k0\": 0";
  for (int i = 1; i < 200'000; ++i) text += str(",\"k", i, "\": ", i);
  const Json v = parse_json(text + "}", "a.json");
  EXPECT_EQ(v.size(), 200'000u);
  EXPECT_EQ(v.items().begin().key(), "k0");
}

TEST(Json, ReadsFiles) {
  const TestFolder folder;
  write_file_atomic(folder / "a.json", "[1,");
  try {
    read_json(folder / "a.json");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find((folder / "a.json") + ", line 1"), std::string::npos);
  }
  EXPECT_THROW(read_json(folder / "absent.json"), Error);
  write_file_atomic(folder / "a.json", "[1]");
  EXPECT_EQ(read_json(folder / "a.json").size(), 1u);
}

}  // namespace
}  // namespace tessera
