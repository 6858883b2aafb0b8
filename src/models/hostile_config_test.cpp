// config.json from strangers: every number is within bounds whose products fit, or is refused by its key; no code is run.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/text.h"
#include "io/file.h"
#include "io/json.h"
#include "models/config.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

constexpr const char* plain = R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128})";

// What reading says of the plain config with `keys` put in their places.
std::string refusal(const std::string& keys) {
  const TestFolder folder;
  Json config = parse_json(plain, "plain");
  config.update(parse_json(keys, "keys"));
  write_file_atomic(folder / "config.json", config.dump());
  return error_of([&] { read_model_config(folder.path()); });
}

void expect_refused(const std::string& keys, const std::string& key) {
  const std::string error = refusal(keys);
  EXPECT_NE(error.find("config.json"), error.npos) << keys;
  EXPECT_NE(error.find("key " + key), error.npos) << keys << ": " << error;
  EXPECT_NE(error.find("\n  allowed: "), error.npos) << keys;
}

TEST(HostileConfig, NumbersOutOfBoundsAreRefusedByKey) {
  EXPECT_EQ(refusal("{}"), "");
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                          "vocab_size", "head_dim", "max_position_embeddings"})
    for (const char* value : {"0", "-1", "1.5", "\"64\"", "[64]", "{}", "true", "4611686018427387904", "18446744073709551615", "1e30"})
      expect_refused(str("{\"", key, "\": ", value, "}"), key);
  for (const char* key : {"rms_norm_eps", "rope_theta", "initializer_range"})
    for (const char* value : {"0", "-1e-5", "\"1\"", "[1]", "false"}) expect_refused(str("{\"", key, "\": ", value, "}"), key);
  expect_refused(R"({"num_hidden_layers": 1000000000})", "num_hidden_layers");
  expect_refused(R"({"num_attention_heads": 1048576, "num_key_value_heads": 1, "head_dim": 1048576})", "head_dim");
  for (const char* value : {"-1", "18446744073709551615", "[2, 18446744073709551615]", "[[2]]", "2.5"})
    expect_refused(str("{\"eos_token_id\": ", value, "}"), "eos_token_id");
}

TEST(HostileConfig, NumbersThatAreNoNumbersAreNoJson) {
  const TestFolder folder;
  for (const char* value : {"NaN", "Infinity", "-Infinity", "1e999", "0x10", "01"}) {
    write_file_atomic(folder / "config.json", str(R"({"model_type": "llama", "rms_norm_eps": )", value, "}"));
    const std::string error = error_of([&] { read_model_config(folder.path()); });
    EXPECT_NE(error.find("config.json, line 1"), error.npos) << value << ": " << error;
  }
}

TEST(HostileConfig, PartsOfAnotherKindAreRefused) {
  for (const char* key : {"rope_scaling", "rope_parameters", "quantization_config"})
    for (const char* value : {"[1]", "1", "\"x\"", "true"}) expect_refused(str("{\"", key, "\": ", value, "}"), key);
  const char* llama3 = R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
    "original_max_position_embeddings": 8192}})";
  expect_refused(llama3, "high_freq_factor");
  expect_refused(R"({"rope_scaling": {"rope_type": "linear", "factor": 0}})", "factor");
}

TEST(HostileConfig, CodeInAModelFolderIsNotRun) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(refusal(R"({"auto_map": {"AutoModelForCausalLM": "modeling_evil.Model"}})"), "");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("auto_map"), std::string::npos);
  expect_refused(R"({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}})", "model_type");
}

TEST(HostileConfig, TheLargestModelsBytesFit) {
  const TestFolder folder;
  write_file_atomic(folder / "config.json", R"({"model_type": "llama", "hidden_size": 1048576, "intermediate_size": 4194304,
    "num_hidden_layers": 8192, "num_attention_heads": 8192, "head_dim": 128, "vocab_size": 16777216})");
  const int64_t parameters = read_model_config(folder.path()).parameters();
  EXPECT_GT(parameters, int64_t(1) << 56);
  EXPECT_LT(parameters, INT64_MAX / 16);
}

}  // namespace
}  // namespace tessera
