#include "core/shown.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

const std::string made_up = "hf_" + std::string("aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567");

TEST(Shown, MasksTokens) {
  EXPECT_EQ(without_secrets("--hub_token " + made_up + " end"), "--hub_token *** end");
  EXPECT_EQ(without_secrets("HF_TOKEN=" + made_up), "HF_TOKEN=***");
  EXPECT_EQ(without_secrets("WANDB_API_KEY=0123456789abcdef, x"), "WANDB_API_KEY=***, x");
  EXPECT_EQ(without_secrets("https://me:abc@host/x and https://u:" + made_up + "@h"), "https://me:***@host/x and https://u:***@h");
  EXPECT_EQ(without_secrets("ghp_abcdefghijklmnopqrstuvwxyz0123456789"), "***");
  EXPECT_EQ(without_secrets("\"sk-proj-abcDEFghi0123456789_xyz\""), "\"***\"");
  EXPECT_TRUE(has_secret("x/" + made_up + "/y"));
}

TEST(Shown, LeavesOtherTextAlone) {
  for (const char* text : {"", "models/hf_internal_testing_tiny_random_llama_model", "max_tokens=12345678", "eos_token=<|end_of_text|>",
                           "https://huggingface.co/a:b", "tokens: 12", "task-specific-adapter-with-a-long-name",
                           "hf_models_Llama_3_8B_Instruct_of_ours", "sk-learn-Models-2024-and-other-things", "hf_", "a@b"})
    EXPECT_EQ(without_secrets(text), text);
}

TEST(Shown, SpellsOutControlCharactersAndCutsLongText) {
  EXPECT_EQ(shown(std::string_view("a\x1b[2J\0\x7f\n\tb", 10)), "a\\x1B[2J\\x00\\x7F\n\tb");
  const std::string cut = shown(std::string(10000, 'x') + "end", 100);
  EXPECT_LT(cut.size(), 200u);
  EXPECT_TRUE(ends_with(cut, "xend"));
  const std::string letters = shown(replace_all(std::string(1001, 'x'), "x", "\xC3\xA9"), 101);
  EXPECT_EQ(letters.find("\xC3 "), letters.npos);
}

TEST(Shown, ErrorsPassThroughIt) {
  try {
    fail("a\x1b", made_up, std::string(100000, 'y'), "b");
  } catch (const Error& e) {
    const std::string text = e.what();
    EXPECT_TRUE(starts_with(text, "a\\x1B: ***\n  allowed: yyy"));
    EXPECT_LT(text.size(), 5000u);
    EXPECT_TRUE(ends_with(text, "\n  do this: b"));
  }
}

}  // namespace
}  // namespace tessera
