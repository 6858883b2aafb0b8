// tessera inspect: rows of a dataset as the model sees them, and which of their tokens are learned.
#include <unistd.h>

#include <cstdio>
#include <optional>

#include "cli/command.h"
#include "cli/config.h"
#include "cli/record.h"
#include "core/text.h"
#include "data/dataset.h"
#include "train/build.h"

namespace tessera {
namespace {

struct InspectOptions {
  TrainConfig train;
  int64_t rows = 3;
  bool json = false;
};

FieldList inspect_fields(InspectOptions& o) {
  FieldList fields("inspect",
                   "usage: tessera inspect --model FOLDER --dataset FILE [--rows N] [--json]\n\n"
                   "Rows of a dataset as the model sees them. What is learned is coloured on a terminal, else it stands in [[ ]].");
  fields.group("Options");
  fields.add("rows", &o.rows, "rows to show, from the first").from(1);
  fields.add("json", &o.json, "one JSON object per row: row, text, ids, labels, dropped");
  add_data_fields(fields, o.train);
  return fields;
}

// Marks set around the learned stretches of a row.
struct Marks {
  const char *begin, *end;
};

std::string marked(const Example& example, const Tokenizer& tokenizer, Marks marks) {
  std::string out;
  bool inside = false;
  TokenStream stream(tokenizer, false);
  for (size_t i = 0; i < example.ids.size(); ++i) {
    const bool learned = example.labels[i] >= 0;
    if (learned != inside) out += learned ? marks.begin : marks.end;
    inside = learned;
    out += stream.next(example.ids[i]);
  }
  return out + stream.rest() + (inside ? marks.end : "");
}

int64_t learned_tokens(const Example& example) {
  int64_t n = 0;
  for (const int32_t label : example.labels) n += label >= 0;
  return n;
}

void show(const InspectedRow& row, const Tokenizer* tokenizer, Marks marks) {
  std::printf("row %lld: %zu tokens, %lld learned%s\n", static_cast<long long>(row.row), row.example.ids.size(),
              static_cast<long long>(learned_tokens(row.example)), row.dropped ? ", dropped: nothing to learn" : "");
  if (tokenizer) std::printf("%s\n\n", marked(row.example, *tokenizer, marks).c_str());
}

void show_json(const InspectedRow& row) {
  Record record;
  record.add("row", row.row)
      .add("text", row.text)
      .add("ids", row.example.ids)
      .add("labels", row.example.labels)
      .add("dropped", row.dropped);
  std::puts(record.line().c_str());
}

}  // namespace

int run_inspect(const Arguments& args) {
  InspectOptions options;
  FieldList fields = inspect_fields(options);
  if (!asks_for_help(args)) apply_given(fields, choose_column(read_command_line(args, fields).given, {}), {});
  if (!read_options(fields, args)) return 0;

  std::optional<Tokenizer> tokenizer;
  if (Tokenizer::present(options.train.model)) tokenizer = Tokenizer::load(options.train.model);
  const Tokenizer* seen = tokenizer ? &*tokenizer : nullptr;
  const Marks marks = ::isatty(STDOUT_FILENO) ? Marks{"\033[32m", "\033[0m"} : Marks{"[[", "]]"};
  for (const auto& row :
       inspect_rows(dataset_options(options.train, options.train.dataset), seen, seen ? seen->vocab_size() : 0, options.rows)) {
    if (options.json)
      show_json(row);
    else
      show(row, seen, marks);
  }
  return 0;
}

}  // namespace tessera
