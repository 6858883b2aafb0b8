#include "data/template.h"

#include <gtest/gtest.h>

namespace tessera {

TEST(Template, AlpacaWithAndWithoutInput) {
  EXPECT_EQ(fill_template("alpaca", {{"instruction", "Add 1 and 2."}}),
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd 1 and 2.\n\n### Response:");
  EXPECT_EQ(fill_template("alpaca_input", {{"instruction", "Add."}, {"input", "1 2"}}),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
            "appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:");
}

TEST(Template, PlacesInsideValuesStay) {
  EXPECT_EQ(fill_template("qna", {{"context", "{question}"}, {"question", "Q {x} }"}}),
            "###Context:\n{question}\n###Question:\nQ {x} }\n###Answer:\n");
}

TEST(Template, ChatMl) {
  const std::vector<Message> turns = {{"system", "Short."}, {"user", "Hi"}};
  EXPECT_EQ(render_chat(chatml(), turns, false), "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
  EXPECT_EQ(render_chat(chatml(), {turns[1]}, true), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

}  // namespace tessera
