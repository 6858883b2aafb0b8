#include "data/rows.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/text.h"
#include "data/rows_fault.h"
#include "testing/golden.h"

namespace tessera {
namespace {

// The error that reading all of `text` gives, "" when there is none.
std::string error_of(const std::string& text) {
  try {
    Rows rows = Rows::of_text(text, "f");
    while (rows.next()) rows.text("a");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::vector<std::string> texts_of(const std::string& text) {
  std::vector<std::string> out;
  Rows rows = Rows::of_text(text, "f");
  while (rows.next()) {
    EXPECT_EQ(rows.number(), int64_t(out.size()));
    out.emplace_back(rows.text("a"));
  }
  return out;
}

void expect_has(const std::string& text, const std::string& part) { EXPECT_NE(text.find(part), std::string::npos) << text; }

}  // namespace

TEST(Rows, LinesAndArrays) {
  const std::vector<std::string> expected = {"x", "y,]\"\\", ""};
  EXPECT_EQ(texts_of("{\"a\":\"x\"}\n{\"a\":\"y,]\\\"\\\\\"}\n{\"a\":\"\"}\n"), expected);
  EXPECT_EQ(texts_of("\xEF\xBB\xBF\r\n{\"a\":\"x\"}\r\n\r\n  {\"a\":\"y,]\\\"\\\\\"}\t\n\n{\"a\":\"\"}"), expected);
  EXPECT_EQ(texts_of("[{\"a\":\"x\"},{\"a\":\"y,]\\\"\\\\\"},{\"a\":\"\"}]"), expected);
  EXPECT_EQ(texts_of(" [\n {\n\"a\": \"x\"\n},\n{\"b\": [1, {}], \"a\":\"y,]\\\"\\\\\"} , {\"a\":\"\"}\n]\n"), expected);
}

TEST(Rows, FaultsOfTheFile) {
  expect_has(error_of(""), "f: line 1, byte 0: the file has no rows");
  expect_has(error_of(" \n\n"), "no rows");
  expect_has(error_of("[]"), "no rows");
  expect_has(error_of("[{\"a\":\"x\"}"), "f: line 1, byte 10: the file ends before the array of rows is closed");
  expect_has(error_of("[{\"a\":\"x\"},]"), "line 1, byte 11");
  expect_has(error_of("[{\"a\":\"x\"},\n"), "line 2, byte 12");
  expect_has(error_of("[{\"a\":\"x\"}]\n{}"), "line 2, byte 12: text after the end of the array");
  expect_has(error_of("[{\"a\":\"x\"} {\"a\":\"x\"}]"), "line 1, byte 11");
  expect_has(error_of("[{\"a\":\"x\"},\n 3]"), "line 2, byte 13: the row is a number");
  expect_has(error_of("{\n\"a\": \"x\"}"), "line 1, byte 1: the row is not JSON: ends before it is complete");
  expect_has(error_of("\xFF\xFE{"), "UTF-16");
  expect_has(error_of("\x1F\x8B\x08"), "gzip");
  expect_has(error_of("PAR1xxxx"), "Parquet");
}

TEST(Rows, FaultsOfARow) {
  const std::string good = "{\"a\":\"x\"}\n";  // 10 bytes
  expect_has(error_of(good + "{\"a\":\"1\",\"a\":\"2\"}"), "f: line 2, byte 10, column \"a\": the key stands twice");
  expect_has(error_of(good + "{\"b\":1}"), "line 2, byte 10, column \"a\": the column is missing; the row has b");
  expect_has(error_of(good + "{\"a\":1.5}"), "line 2, byte 10, column \"a\": the value is a number");
  expect_has(error_of(good + "{\"a\":null}"), "the value is null");
  expect_has(error_of(good + "{\"a\":\"\\uDC00\"}"), "byte 16: the row is not JSON: the escape of half a surrogate pair");
  expect_has(error_of(good + "{\"a\":\"\\ud83d\"}"), "byte 16: the row is not JSON: the escape of half a surrogate pair");
  expect_has(error_of(good + "{\"a\":\"x\",\"b\":-Infinity}"), "-Infinity is not JSON");
  EXPECT_EQ(texts_of("{\"a\":\"\\uD83D\\uDE00\"}"), std::vector<std::string>{"\xF0\x9F\x98\x80"});
}

TEST(Rows, MessagesAndIntegers) {
  Rows rows = Rows::of_text(
      "{\"m\":[{\"role\":\"user\",\"content\":\"Hi\",\"x\":1}],\"n\":[1,-100],\"o\":null}\n{\"m\":[{\"role\":\"user\"}],\"n\":[1,2.5]}",
      "f");
  ASSERT_TRUE(rows.next());
  const std::vector<Message> messages = rows.messages("m", "role", "content");
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].role, "user");
  EXPECT_EQ(messages[0].content, "Hi");
  EXPECT_EQ(rows.integers("n"), (std::vector<int64_t>{1, -100}));
  EXPECT_EQ(rows.columns(), (std::vector<std::string>{"m", "n", "o"}));
  EXPECT_TRUE(rows.is_list("m") && rows.has("n") && !rows.has("o") && !rows.has("p"));
  ASSERT_TRUE(rows.next());
  EXPECT_THROW(rows.messages("m", "role", "content"), Error);
  EXPECT_THROW(rows.integers("n"), Error);
}

TEST(Rows, FaultFinderAgreesWithTheParser) {
  for (const char* good :
       {"{}", "[]", " [1, -0.5e+3, true,false ,null, \"\\u00e9\\n\"] ", "{\"a\":{\"b\":[]}}", "0", "\"\xF0\x9F\x98\x80\""})
    EXPECT_TRUE(!find_json_fault(good) && error_of(str("{\"a\":\"x\",\"b\":", good, "}")).empty()) << good;
  const std::pair<std::string, size_t> faults[] = {{"{\"a\" 1}", 5},
                                                   {"{\"a\":1 \"b\":2}", 7},
                                                   {"[1,]", 3},
                                                   {"{,}", 1},
                                                   {"[01]", 1},
                                                   {"[1.]", 3},
                                                   {"\"\\x\"", 1},
                                                   {"\"\\u12g4\"", 1},
                                                   {"[tru]", 1},
                                                   {"[1]]", 3},
                                                   {"\"\xED\xA0\x80\"", 1},
                                                   {"\"\xC3(\"", 1},
                                                   {"[1", 2},
                                                   {"\"a\tb\"", 2},
                                                   {"[-]", 2}};
  for (const auto& [text, at] : faults) {
    const auto fault = find_json_fault(text);
    ASSERT_TRUE(fault) << text;
    EXPECT_EQ(fault->at, at) << text << ": " << fault->what;
    expect_has(error_of(str("{\"a\":\"x\",\"b\":", text, "}")), "the row is not JSON");
  }
}

TEST(Rows, AlpacaFileHasAllRows) {
  NEEDS_SHARED();
  Rows rows(shared("data/gsm8k_alpaca.json"));
  int64_t n = 0;
  while (rows.next()) n += !rows.text("instruction").empty() && rows.text("input").empty();
  EXPECT_EQ(n, 7473);
}

}  // namespace tessera
