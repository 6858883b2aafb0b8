#include "models/peft_regex.h"

#include <gtest/gtest.h>

#include "core/text.h"
#include "models/peft.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

const std::string path = "model.layers.31.self_attn.q_proj";

TEST(PeftRegex, MatchesWholePathsAsPythonDoes) {
  EXPECT_TRUE(PeftRegex("k", R"(model\.layers\.\d+\.(self_attn|mlp)\.(q|v)_proj)").matches(path));
  EXPECT_FALSE(PeftRegex("k", "q_proj").matches(path));
  EXPECT_FALSE(PeftRegex("k", "model").matches(path));
  EXPECT_TRUE(PeftRegex("k", R"((?P<head>model).*(?<=_)proj(?!x))").matches(path));
  EXPECT_TRUE(PeftRegex("k", "(?i)MODEL.*").matches(path));
}

TEST(PeftRegex, NumbersOfLayers) {
  EXPECT_EQ(PeftRegex("k", R"(.*\.[^.]*\.(?<number>\d+)\.)").number(path), 31);
  EXPECT_EQ(PeftRegex("k", R"(.*\.(layers)\.(?<number>\d+)\.)").number(path), 31);
  EXPECT_EQ(PeftRegex("k", R"(.*\.(h)\.(?<number>\d+)\.)").number(path), std::nullopt);
  EXPECT_EQ(PeftRegex("k", R"((?<number>\d+)?model)").number(path), std::nullopt);
  EXPECT_EQ(PeftRegex("k", R"((?<number>\d+))").number("99999999999999999999999"), std::nullopt);
}

TEST(PeftRegex, WhatIsWrongOrTooLongIsRefusedByKey) {
  for (const std::string& wrong : {std::string("("), std::string("[a"), std::string("a{2,1}"), std::string("(?<number>a)(?<number>b)"),
                                   std::string(100'000, '('), std::string(100'000, 'a'), std::string("\\C"), std::string("\xff")}) {
    const std::string error = error_of([&] { PeftRegex("the_key", wrong); });
    EXPECT_TRUE(starts_with(error, "the_key: the expression ")) << error;
    EXPECT_LT(error.size(), 10'000u);
  }
}

// Exponential or worse for a matcher without limits. A class at the end: a letter that must be there is looked for first.
TEST(PeftRegex, BacktrackingWithoutEndIsRefused) {
  for (const char* slow : {"((([a-z_.0-9]+)+)+)+[#%]", "((.*)*.*)*[#%]", "(?:(?:.?){30}){30}[#%]", "(?=((.+)+)+[#%])"}) {
    const std::string error = error_of([&] { PeftRegex("the_key", slow).matches(path + "." + path); });
    EXPECT_NE(error.find("takes too long"), error.npos) << slow;
  }
}

TEST(PeftRegex, EveryExpressionOfAConfigIsBounded) {
  const std::vector<std::string> linear = {path, "lm_head"};
  const std::string slow = "((([a-z_.0-9]+)+)+)+[#%]";
  PeftConfig config;
  config.target_modules.entries = {slow}, config.target_modules.regex = true;
  EXPECT_NE(error_of([&] { targeted_modules(config, linear); }).find("target_modules"), std::string::npos);
  config = {};
  config.target_modules.entries = {"q_proj"};
  config.exclude_modules.entries = {slow}, config.exclude_modules.regex = true;
  EXPECT_NE(error_of([&] { targeted_modules(config, linear); }).find("exclude_modules"), std::string::npos);
  config.exclude_modules = {};
  config.rank_pattern = {{slow, 4}};
  EXPECT_NE(error_of([&] { targeted_modules(config, linear); }).find("rank_pattern"), std::string::npos);
  config.rank_pattern.clear();
  config.layers_to_transform = {31}, config.layers_pattern = {slow};
  EXPECT_NE(error_of([&] { targeted_modules(config, linear); }).find("layers_pattern"), std::string::npos);
}

}  // namespace
}  // namespace tessera
