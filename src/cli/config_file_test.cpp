#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/config.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

class ConfigFile : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "tessera_" + testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml";
  }
  void TearDown() override { std::filesystem::remove(path_); }

  TrainArguments parse(const std::string& text, Arguments args = {}) {
    std::ofstream(path_) << text;
    args.insert(args.begin(), path_);
    return parse_train(args);
  }
  void expect_error(const std::string& text, const std::vector<std::string>& parts, Arguments args = {}) {
    try {
      parse(text, std::move(args));
      ADD_FAILURE() << "accepted:\n" << text;
    } catch (const Error& e) {
      for (const auto& part : parts) EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << part << " is not in:\n" << e.what();
    }
  }
  std::string path_;
};

const char* small =
    "model: m\n"
    "dataset: d.jsonl\n"
    "learning-rate: 1e-4\n"
    "lora:\n"
    "  rank: 8\n"
    "  target_modules: [q_proj, v_proj]\n"
    "bf16: yes\n";

TEST_F(ConfigFile, HasTheNamesOfTheCommandLineAndNestedMaps) {
  const TrainConfig c = parse(small).config;
  EXPECT_EQ(c.model, "m");
  EXPECT_EQ(c.lr, 1e-4);
  EXPECT_EQ(c.lora_rank, 8);
  EXPECT_EQ(c.lora_target_modules, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(c.precision, "bf16");
  EXPECT_EQ(c.defaults, "tessera");
}

TEST_F(ConfigFile, TheCommandLineWins) {
  EXPECT_EQ(parse(small, {"--lr", "3e-4"}).config.lr, 3e-4);
  const TrainConfig c = parse(small, {"--model_name", "other"}).config;
  EXPECT_EQ(c.model, "other");
  EXPECT_EQ(c.defaults, "fsdp_qlora");
  EXPECT_EQ(c.lr, 1e-4);
  EXPECT_EQ(parse("defaults: trl\nmodel: m\ndataset: d\n", {"--defaults", "fsdp_qlora"}).config.lr, 1e-5);
}

TEST_F(ConfigFile, ReadsWhatTheConfigOptionNames) {
  std::ofstream(path_) << small;
  EXPECT_EQ(parse_train({"--config", path_, "--seed", "7"}).config.seed, 7u);
}

TEST_F(ConfigFile, ErrorsNameFileLineAndNearestName) {
  expect_error("model: m\nlearning_rat: 1\n", {path_, "line 2: learning_rat", "perhaps learning_rate"});
  expect_error("model: m\nlora:\n  rnak: 8\n", {"line 3: lora_rnak", "perhaps lora_rank"});
  expect_error("model: m\nlr: fast\n", {"line 2: lr: \"fast\"", "a number above 0"});
  expect_error("model: m\nlr:\n", {"line 2: lr: no value is given"});
  expect_error("model: m\nlr: 1e-4\nlearning_rate: 1e-4\n", {"line 3: learning_rate", "line 2: lr"});
  expect_error("model: m\nmodel_name: n\n", {"line 2: model_name"});
  expect_error("model: m\n  lr: [\n", {path_, "line "});
  expect_error("- a\n- b\n", {path_, "holds no names"});
  expect_error("model: m\ndataset: d\npacking: true\n", {"line 3: packing true", "not yet"});
  EXPECT_THROW(parse_train({"--config", path_ + ".absent"}), Error);
}

// Aliases of YAML can make a small file stand for more than fits in memory, or for itself.
TEST_F(ConfigFile, BombsAreRefused) {
  std::string bomb = "a: &a {}\n";
  for (char c = 'b'; c < 'm'; ++c) {
    bomb += str(c, ": &", c, " {");
    for (int i = 0; i < 9; ++i) bomb += str(i ? ", " : "", "x", i, ": *", char(c - 1));
    bomb += "}\n";
  }
  expect_error(bomb, {path_, "without aliases"});
  expect_error("x: &a\n  y: *a\n", {path_, "a map inside 8 others"});
  expect_error("a: " + std::string(100'000, '['), {path_, "line 1"});
  expect_error("a: " + replace_all(std::string(10'000, '{'), "{", "{a: "), {path_, "line 1"});
  std::string blocks;
  for (int i = 0; i < 900; ++i) blocks += std::string(size_t(i), ' ') + "a:\n";
  expect_error(blocks, {path_});
  expect_error("# " + std::string(2'000'000, 'x') + "\nmodel: m\n", {path_, "up to 1048576 bytes"});
  expect_error("? {a: b}\n: c\n", {path_, "line 1", "a name that is no text"});
  expect_error("[a]: c\n", {path_, "line 1"});
}

TEST_F(ConfigFile, ResolvedConfigurationsReadBackTheSame) {
  const std::vector<Arguments> lines = {
      {"--model", "a \"b\" \\ c", "--dataset", "d: #1.jsonl", "--lora_target_modules", R"(.*\.(q|v)_proj, x{1,2})"},
      {"--model_name", "m", "--apply_gradient_clipping", "true", "--max_steps", "5", "--lora_dropout", "0.3", "--seed", "9007199254740991"},
      {"--model_name_or_path", "m", "--dataset", "d", "--warmup_steps", "3", "--adam_epsilon", "1.1e-9"},
      {"--model_name_or_path", "m", "--dataset", "d", "--use_peft", "--load_in_4bit", "--lora_exclude_modules", "lm_head",
       "--resume_from_checkpoint", "x"},
  };
  for (const auto& line : lines) {
    const TrainConfig c = parse_train(line).config;
    const TrainArguments again = parse(to_yaml(c));
    EXPECT_EQ(again.config, c) << to_yaml(c);
    EXPECT_EQ(to_yaml(again.config), to_yaml(c));
    EXPECT_LE(again.notices.size(), 2u);
  }
}

TEST_F(ConfigFile, JsonHoldsEveryMember) {
  TrainConfig c = parse(small).config;
  const auto json = nlohmann::json::parse(to_json(c));
  EXPECT_EQ(json["lr"], 1e-4);
  EXPECT_EQ(json["lora_target_modules"], (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(json["max_steps"], -1);
  EXPECT_EQ(json["shuffle"], true);
  size_t n = 0;
  for (const auto& f : train_fields(c)) n += json.contains(f.name());
  EXPECT_EQ(n, json.size());
}

}  // namespace
}  // namespace tessera
