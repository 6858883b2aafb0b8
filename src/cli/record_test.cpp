#include "cli/record.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace tessera {
namespace {

TEST(Record, IsJsonThatReadsBack) {
  Record record;
  const std::string text = "a\"b\\c\n\t\x01\x7f \xe2\x82\xac";
  record.add("text", text).add("flag", true).add("real", 2e-4).add("none", std::numeric_limits<double>::infinity());
  record.add("whole", int64_t(-3)).add("natural", uint64_t(18446744073709551615u));
  record.add("ids", std::vector<int32_t>{1, -100}).add("names", std::vector<std::string>{"q", "v\""}).add("empty", std::vector<int32_t>{});
  const auto json = nlohmann::json::parse(record.line());
  EXPECT_EQ(json["text"], text);
  EXPECT_EQ(json["flag"], true);
  EXPECT_EQ(json["real"], 2e-4);
  EXPECT_TRUE(json["none"].is_null());
  EXPECT_EQ(json["whole"], -3);
  EXPECT_EQ(json["natural"], 18446744073709551615u);
  EXPECT_EQ(json["ids"], (std::vector<int>{1, -100}));
  EXPECT_EQ(json["names"], (std::vector<std::string>{"q", "v\""}));
  EXPECT_EQ(json["empty"].size(), 0u);
  EXPECT_EQ(record.line().find('\n'), std::string::npos);
}

}  // namespace
}  // namespace tessera
