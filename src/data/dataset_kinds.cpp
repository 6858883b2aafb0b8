#include "data/dataset_kinds.h"

#include <algorithm>

#include "core/error.h"
#include "core/text.h"
#include "data/template.h"

namespace tessera {
namespace {

constexpr std::string_view assistant_mark = "### Assistant: ";

// 0 or 1 for every id; labels where it is 0 are not learned.
void apply_mask(const Rows& rows, std::string_view column, Example& example) {
  const std::vector<int64_t> mask = rows.integers(column);
  if (mask.size() != example.ids.size())
    rows.refuse(column, str(mask.size(), " items for ", example.ids.size(), " ids"), "as many as input_ids", "correct the row");
  for (size_t i = 0; i < mask.size(); ++i)
    if (mask[i] == 0) example.labels[i] = -100;
}

std::vector<int32_t> checked_ids(const Rows& rows, std::string_view column, int32_t vocab_size, bool labels) {
  const int64_t limit = vocab_size > 0 ? vocab_size : INT32_MAX;
  const std::vector<int64_t> numbers = rows.integers(column);
  const auto bad =
      std::find_if(numbers.begin(), numbers.end(), [&](int64_t id) { return (id < 0 || id >= limit) && !(labels && id == -100); });
  if (bad != numbers.end())
    rows.refuse(column, str("item ", bad - numbers.begin(), " is ", *bad), str("0 to ", limit - 1, labels ? ", or -100" : ""),
                "tokenize the data with the tokenizer of this model");
  return {numbers.begin(), numbers.end()};
}

void read_pretokenized(const Rows& rows, const DatasetOptions& options, int32_t vocab_size, RowText& out) {
  out.given.ids = checked_ids(rows, "input_ids", vocab_size, false);
  if (out.given.ids.empty()) rows.refuse("input_ids", "the list is empty", "at least one id", "remove the row");
  out.given.labels = rows.has("labels") ? checked_ids(rows, "labels", vocab_size, true) : out.given.ids;
  if (out.given.labels.size() != out.given.ids.size())
    rows.refuse("labels", str(out.given.labels.size(), " items for ", out.given.ids.size(), " ids"), "as many as input_ids",
                "correct the row");
  if (rows.has("assistant_masks")) apply_mask(rows, "assistant_masks", out.given);
  if (rows.has("completion_mask") && options.completion_only) apply_mask(rows, "completion_mask", out.given);
}

void read_text(const Rows& rows, const DatasetOptions& options, int32_t, RowText& out) { out.answer = rows.text(options.text_field); }

void read_prompt_completion(const Rows& rows, const DatasetOptions&, int32_t, RowText& out) {
  out.prompt = rows.text("prompt");
  out.answer = rows.text("completion");
}

void read_prompt_completion_chat(const Rows& rows, const DatasetOptions&, int32_t, RowText& out) {
  std::vector<Message> turns = rows.messages("prompt", "role", "content");
  out.prompt = render_chat(chatml(), turns, true);
  const std::vector<Message> completion = rows.messages("completion", "role", "content");
  turns.insert(turns.end(), completion.begin(), completion.end());
  const std::string whole = render_chat(chatml(), turns, false);
  if (!starts_with(whole, out.prompt))
    rows.refuse("completion", str("the first message has the role ", completion[0].role), "assistant",
                "begin the completion with the assistant");
  out.answer = whole.substr(out.prompt.size());
}

void read_messages(const Rows& rows, const DatasetOptions&, int32_t, RowText& out) {
  out.answer = render_chat(chatml(), rows.messages("messages", "role", "content"), false);
}

void read_sharegpt(const Rows& rows, const DatasetOptions&, int32_t, RowText& out) {
  out.answer = render_chat(chatml(), rows.messages("conversations", "from", "value"), false);
}

void read_alpaca(const Rows& rows, const DatasetOptions&, int32_t, RowText& out) {
  const std::string_view instruction = rows.text("instruction"), input = rows.has("input") ? rows.text("input") : "";
  out.prompt = input.empty() ? fill_template("alpaca", {{"instruction", instruction}})
                             : fill_template("alpaca_input", {{"instruction", instruction}, {"input", input}});
  out.answer = rows.text("output");
}

void read_sql(const Rows& rows, const DatasetOptions&, int32_t, RowText& out) {
  out.prompt = fill_template("qna", {{"context", rows.text("context")}, {"question", rows.text("question")}});
  out.answer = rows.text("answer");
}

void read_orca_math(const Rows& rows, const DatasetOptions&, int32_t, RowText& out) {
  out.prompt = fill_template("qna_no_ctx", {{"question", rows.text("question")}});
  out.answer = rows.text("answer");
}

// All before the first mark is prompt; the mark itself and all later turns are learned.
void read_guanaco(const Rows& rows, const DatasetOptions& options, int32_t, RowText& out) {
  const std::string_view text = rows.text(options.text_field);
  const size_t mark = std::min(text.find(assistant_mark), text.size());
  out.prompt = text.substr(0, mark);
  out.answer = text.substr(mark);
}

bool fits_named_text(const Rows&, const DatasetOptions& options) { return options.text_field != "text"; }

bool fits_guanaco(const Rows& rows, const DatasetOptions& options) {
  if (options.dialect != "fsdp_qlora") return false;
  return options.dataset == "guanaco" || rows.text(options.text_field).find(assistant_mark) != std::string_view::npos;
}

bool fits_prompt_completion_chat(const Rows& rows, const DatasetOptions&) { return rows.is_list("prompt") && rows.is_list("completion"); }

constexpr const char* text_field = "(text_field)";  // stands for the column that DatasetOptions::text_field names

// The first that fits is taken. A text column that the user has named wins over all but ids.
constexpr RowKind kinds[] = {
    {"pretokenized", {"input_ids"}, LossFrom::given, false, read_pretokenized, nullptr},
    {"text", {text_field}, LossFrom::start, false, read_text, fits_named_text},
    {"prompt_completion_chat",
     {"prompt", "completion"},
     LossFrom::divergence,
     true,
     read_prompt_completion_chat,
     fits_prompt_completion_chat},
    {"prompt_completion", {"prompt", "completion"}, LossFrom::divergence, false, read_prompt_completion, nullptr},
    {"messages", {"messages"}, LossFrom::start, true, read_messages, nullptr},
    {"sharegpt", {"conversations"}, LossFrom::start, true, read_sharegpt, nullptr},
    {"alpaca", {"instruction", "output"}, LossFrom::prompt_count, false, read_alpaca, nullptr},
    {"sql", {"question", "context", "answer"}, LossFrom::prompt_count, false, read_sql, nullptr},
    {"orca_math", {"question", "answer"}, LossFrom::prompt_count, false, read_orca_math, nullptr},
    {"guanaco", {text_field}, LossFrom::prompt_count, false, read_guanaco, fits_guanaco},
    {"text", {text_field}, LossFrom::start, false, read_text, nullptr},
};

std::vector<std::string> columns_of(const RowKind& kind, const DatasetOptions& options) {
  std::vector<std::string> out;
  for (const char* column : kind.columns)
    if (column) out.push_back(column == text_field ? options.text_field : column);
  return out;
}

}  // namespace

const RowKind& kind_of(const Rows& rows, const DatasetOptions& options) {
  std::vector<std::string> known;
  for (const RowKind& kind : kinds) {
    const std::vector<std::string> columns = columns_of(kind, options);
    const bool there = std::all_of(columns.begin(), columns.end(), [&](const std::string& column) { return rows.has(column); });
    if (there && (!kind.fits || kind.fits(rows, options))) return kind;
    const std::string line = str(kind.name, " (", join(columns, ", "), ")");
    if (std::find(known.begin(), known.end(), line) == known.end()) known.push_back(line);
  }
  rows.refuse("", str("no kind of row has these columns: ", join(rows.columns(), ", ")), join(known, "; "),
              "rename the columns, or name the column of the text with --dataset_text_field");
}

}  // namespace tessera
