// tessera tokenize: texts as token ids, to compare tokenizers and to see what a model reads.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/record.h"
#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer.h"
#include "io/file.h"
#include "io/json.h"

namespace tessera {
namespace {

struct TokenizeOptions {
  std::string model, file;
  std::string text_field = "text";
  bool json = false;
};

FieldList tokenize_fields(TokenizeOptions& o) {
  FieldList fields("tokenize",
                   "usage: tessera tokenize --model FOLDER [--file ROWS.jsonl] [--json]\n\n"
                   "Texts as token ids. Without --file each line of standard input is a text.");
  fields.group("Options");
  fields.add("model", &o.model, "folder with tokenizer.json or tokenizer.model, or one of these files")
      .also({"model_name", "model_name_or_path"})
      .needed();
  fields.add("file", &o.file, "a JSON Lines file: the text is in the column --dataset_text_field");
  fields.add("dataset_text_field", &o.text_field, "the column of plain text").also({"text_field"});
  fields.add("json", &o.json, "one JSON object per text: ids, ids_plain (without special tokens), pieces, decoded");
  return fields;
}

std::string text_of_row(const std::string& line, const std::string& column, const std::string& where) {
  const Json row = parse_json(line, where);
  if (!row.is_object() || !row.contains(column) || !row[column].is_string())
    fail(where, str("no text in \"", column, "\""), "an object with a text", "name the column with --dataset_text_field");
  return row[column].get<std::string>();
}

// Pieces as a reader can tell them apart: "1:<s>  306:▁I  763:▁like".
std::string table_line(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string out;
  for (const int32_t id : ids) out += str(out.empty() ? "" : "  ", id, ":", replace_all(tokenizer.piece(id), "\n", "\\n"));
  return out;
}

void show(const Tokenizer& tokenizer, const std::string& text, bool json) {
  const auto ids = tokenizer.encode(text, true), plain = tokenizer.encode(text, false);
  if (!json) {
    std::printf("%s\n  %zu tokens  %s\n", text.c_str(), ids.size(), table_line(tokenizer, ids).c_str());
    return;
  }
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(tokenizer.piece(id));
  Record record;
  record.add("ids", ids).add("ids_plain", plain).add("pieces", pieces).add("decoded", tokenizer.decode(ids, false));
  std::puts(record.line().c_str());
}

}  // namespace

int run_tokenize(const Arguments& args) {
  TokenizeOptions options;
  FieldList fields = tokenize_fields(options);
  if (!read_options(fields, args)) return 0;
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  if (options.file.empty()) {
    for (std::string line; std::getline(std::cin, line);) show(tokenizer, line, options.json);
    return 0;
  }
  int64_t number = 0;
  for (const auto& line : split(read_file(options.file), '\n')) {
    ++number;
    if (!trim(line).empty()) show(tokenizer, text_of_row(line, options.text_field, str(options.file, " line ", number)), options.json);
  }
  return 0;
}

}  // namespace tessera
