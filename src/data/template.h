// Prompt templates: how the columns of a row, or the turns of a conversation, become one text. Two tables; a new template is a row.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// One turn of a conversation. Views into the row it was read from.
struct Message {
  std::string_view role, content;
};

// What stands in a template's place {name}.
struct Slot {
  std::string_view name, value;
};

// The text of the named prompt template ("alpaca", "alpaca_input", "qna", "qna_no_ctx") with its places filled. A place inside a value is
// left as it is. REQUIRES: the name is in the table, and there is a slot for every place.
std::string fill_template(std::string_view name, std::initializer_list<Slot> slots);

// A chat template: every turn is before_role + role + after_role + content + after_content.
struct ChatTemplate {
  const char* name;
  const char* before_role;
  const char* after_role;
  const char* after_content;
  const char* generation_prompt;  // written when the model is to answer next
};

const ChatTemplate& chatml();
std::string render_chat(const ChatTemplate&, const std::vector<Message>& messages, bool add_generation_prompt);

}  // namespace tessera
