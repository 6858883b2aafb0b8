// Dataset: rows of a data file turned into token ids and labels. A table of row kinds (text, alpaca, messages, prompt-completion,
// pre-tokenized) decides by the columns that are there; "which format is this" is asked nowhere else.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace tessera {

struct Example {
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;  // same length; -100 where no loss is taken. Not shifted: labels[i] is ids[i] or -100
};

struct DatasetOptions {
  std::string dataset;              // a path, or alpaca, alpaca_sample, dummy, ... (fsdp_qlora's names, looked up as local files)
  std::string dialect = "tessera";  // "fsdp_qlora": EOS and masks as its InstructionDataset; "tessera", "trl": as TRL's SFTTrainer
  std::string text_field = "text";  // --dataset_text_field
  int64_t context_length = 512;     // ids beyond are cut off
  int64_t samples = 0;              // --dataset_samples, for alpaca_sample, dummy, orca_math; 0: all
  bool completion_only = true;      // loss on completions only where a row has prompt and completion
};

// What reading found; printed aloud by whoever loads.
struct DatasetReport {
  std::string kind;  // "alpaca", "text", ...
  int64_t rows = 0, kept = 0;
  int64_t dropped_without_label = 0;  // nothing left to learn after truncation
  int64_t truncated = 0;
  int64_t tokens = 0, label_tokens = 0;
  std::string chat_template;       // "chatml" when rows are conversations, "" otherwise
  std::vector<std::string> notes;  // whatever else a user should know, one sentence each
};

class Dataset {
 public:
  // tokenizer may be null when rows are pre-tokenized; otherwise its absence is an error that says so. Errors name file, line, column.
  // vocab_size (0: unknown) bounds pre-tokenized ids.
  static Dataset load(const DatasetOptions&, const Tokenizer* tokenizer, int32_t vocab_size);
  int64_t size() const { return int64_t(examples_.size()); }
  const Example& operator[](int64_t i) const { return examples_[size_t(i)]; }
  int64_t source_row(int64_t i) const { return rows_[size_t(i)]; }  // row number in the file, from 0
  const DatasetReport& report() const { return report_; }
  const std::string& path() const { return path_; }  // the file that was read; "" for dummy

 private:
  std::string path_;
  std::vector<Example> examples_;
  std::vector<int64_t> rows_;
  DatasetReport report_;
};

// One row as a user wrote it and as the model sees it (for `tessera inspect`): also the rows that would be dropped.
struct InspectedRow {
  int64_t row = 0;
  std::string kind;  // as DatasetReport::kind
  std::string text;  // what was tokenized; "" for pre-tokenized rows
  Example example;
  bool dropped = false;
};
std::vector<InspectedRow> inspect_rows(const DatasetOptions&, const Tokenizer* tokenizer, int32_t vocab_size, int64_t count);

}  // namespace tessera
