#include "cli/arguments.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

struct Options {
  std::string model;
  bool json = false, checkpointing = true;
  int64_t rows = 3;
  std::vector<std::string> targets;
};

FieldList option_fields(Options& o) {
  FieldList fields("show", "usage: tessera show");
  fields.group("Options");
  fields.add("model", &o.model, "a folder").needed();
  fields.add("json", &o.json, "as JSON");
  fields.add("gradient_checkpointing", &o.checkpointing, "less memory");
  fields.add("rows", &o.rows, "how many").from(1);
  fields.add("lora_target_modules", &o.targets, "layers");
  return fields;
}

Options read(const Arguments& args) {
  Options options;
  FieldList fields = option_fields(options);
  EXPECT_TRUE(read_options(fields, args));
  return options;
}

std::string error_of(const Arguments& args) {
  try {
    read(args);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Arguments, BothSpellingsOfNamesAndValues) {
  const Options o = read({"--model=a b", "--json", "--gradient-checkpointing", "False", "--rows", "5", "--lora_target_modules", "q", "v"});
  EXPECT_EQ(o.model, "a b");
  EXPECT_TRUE(o.json);
  EXPECT_FALSE(o.checkpointing);
  EXPECT_EQ(o.rows, 5);
  EXPECT_EQ(o.targets, (std::vector<std::string>{"q", "v"}));
}

TEST(Arguments, NoBeforeABoolSaysFalse) {
  EXPECT_FALSE(read({"--model", "m", "--no_gradient_checkpointing"}).checkpointing);
  EXPECT_FALSE(read({"--model", "m", "--no-gradient-checkpointing"}).checkpointing);
}

TEST(Arguments, AnEmptyValueAfterEqualsIsAValue) { EXPECT_NE(error_of({"--model="}).find("--model is missing"), std::string::npos); }

TEST(Arguments, ErrorsNameTheFlagAsTyped) {
  EXPECT_NE(error_of({"--model", "m", "--row", "2"}).find("--row: there is no option of this name"), std::string::npos);
  EXPECT_NE(error_of({"--model", "m", "--row", "2"}).find("perhaps --rows is meant"), std::string::npos);
  EXPECT_NE(error_of({"--model", "m", "--lora-target-module", "q"}).find("perhaps --lora_target_modules"), std::string::npos);
  EXPECT_NE(error_of({"--model", "m", "-x"}).find("-x"), std::string::npos);
  EXPECT_NE(error_of({"--model", "m", "--json", "maybe"}).find("\"maybe\" belongs to no option"), std::string::npos);
  EXPECT_NE(error_of({"--json"}).find("--model is missing"), std::string::npos);
  EXPECT_NE(error_of({"--model", "m", "--rows", "-1"}).find("--rows: \"-1\""), std::string::npos);
  EXPECT_NE(error_of({"--model", "m", "--rows"}).find("--rows: no value is given"), std::string::npos);
}

TEST(Arguments, AnAbbreviationIsUnknown) { EXPECT_NE(error_of({"--mod", "m"}).find("--mod: there is no option"), std::string::npos); }

TEST(Arguments, StopWordsEndTheReading) {
  Options o;
  FieldList fields = option_fields(o);
  const CommandLine line = read_command_line({"--rows", "2", "--standalone", "train", "--model", "m"}, fields, {"train"});
  ASSERT_EQ(line.given.size(), 2u);
  EXPECT_TRUE(line.given[1].values.empty());
  EXPECT_EQ(line.words, (Arguments{"train", "--model", "m"}));
}

TEST(Arguments, HelpShowsEveryFieldAndDoesNotRun) {
  Options o;
  FieldList fields = option_fields(o);
  testing::internal::CaptureStdout();
  EXPECT_FALSE(read_options(fields, {"--rows", "x", "--help"}));
  const std::string text = testing::internal::GetCapturedStdout();
  for (const auto& name : fields.names()) EXPECT_NE(text.find("--" + name), std::string::npos) << name;
  EXPECT_NE(text.find("default: 3"), std::string::npos);
  EXPECT_NE(text.find("usage: tessera show"), std::string::npos);
}

}  // namespace
}  // namespace tessera
