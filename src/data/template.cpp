#include "data/template.h"

#include <cassert>

namespace tessera {
namespace {

struct PromptTemplate {
  std::string_view name, text;
};

// Source: AnswerDotAI/fsdp_qlora, train.py, PROMPT_DICT and InstructionDataset.
constexpr PromptTemplate prompt_templates[] = {
    {"alpaca_input",
     "Below is an instruction that describes a task, paired with an input that provides further context. "
     "Write a response that appropriately completes the request.\n\n"
     "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"},
    {"alpaca",
     "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
     "### Instruction:\n{instruction}\n\n### Response:"},
    {"qna", "###Context:\n{context}\n###Question:\n{question}\n###Answer:\n"},
    {"qna_no_ctx", "###Question:\n{question}\n###Answer:\n"},
};

constexpr ChatTemplate chat_templates[] = {
    {"chatml", "<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n"},
};

std::string_view value_of(std::string_view place, std::initializer_list<Slot> slots) {
  for (const Slot& slot : slots)
    if (slot.name == place) return slot.value;
  assert(!"a place of the template has no slot");
  return {};
}

}  // namespace

std::string fill_template(std::string_view name, std::initializer_list<Slot> slots) {
  std::string_view text;
  for (const PromptTemplate& row : prompt_templates)
    if (row.name == name) text = row.text;
  assert(!text.empty());
  std::string out;
  for (size_t open; (open = text.find('{')) != text.npos;) {
    const size_t close = text.find('}', open);
    out += text.substr(0, open);
    out += value_of(text.substr(open + 1, close - open - 1), slots);
    text.remove_prefix(close + 1);
  }
  return out += text;
}

const ChatTemplate& chatml() { return chat_templates[0]; }

std::string render_chat(const ChatTemplate& chat, const std::vector<Message>& messages, bool add_generation_prompt) {
  std::string out;
  for (const Message& message : messages) {
    out += chat.before_role;
    out += message.role;
    out += chat.after_role;
    out += message.content;
    out += chat.after_content;
  }
  if (add_generation_prompt) out += chat.generation_prompt;
  return out;
}

}  // namespace tessera
