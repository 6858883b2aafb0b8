#include "data/dataset.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "core/text.h"
#include "data/dataset_encode.h"
#include "data/dataset_find.h"
#include "data/dataset_kinds.h"
#include "data/rows.h"

namespace tessera {
namespace {

constexpr int64_t dummy_rows = 512;  // fsdp_qlora's default of --dataset_samples

void check_options(const DatasetOptions& o) {
  const std::vector<std::string> dialects = {"tessera", "trl", "fsdp_qlora"};
  if (std::find(dialects.begin(), dialects.end(), o.dialect) == dialects.end())
    fail("dialect", o.dialect, join(dialects, ", "), "choose one of them");
  if (o.context_length < 2) fail("context_length", str(o.context_length), "2 or more", "give room for a token and the one that follows it");
  if (o.samples < 0) fail("dataset_samples", str(o.samples), "0 (all) or more", "give a number of rows");
}

// fsdp_qlora's dummy row, which is longer than any context.
std::string dummy_text(const DatasetOptions& o) {
  std::string output;
  for (int64_t i = 0; i < 2 * o.context_length; ++i) output += "output";
  return str("{\"instruction\":\"instruction\",\"input\":\"input\",\"output\":\"", output, "\"}");
}

// The rows of a data set one by one, encoded. The first row decides the kind of all.
class Reader {
 public:
  Reader(const DatasetOptions& options, const Tokenizer* tokenizer, int32_t vocab_size)
      : options_(options), tokenizer_(tokenizer), vocab_size_(vocab_size) {
    check_options(options);
    dummy_ = options.dataset == "dummy";
    if (!dummy_) path_ = find_dataset(options.dataset);
    const bool sampled = options.dataset == "alpaca_sample" || options.dataset == "orca_math";
    if (dummy_ || (sampled && options.samples > 0)) limit_ = options.samples > 0 ? options.samples : dummy_rows;
    rows_.emplace(dummy_ ? Rows::of_text(dummy_text(options), "dummy") : Rows(path_));
  }

  const std::string& path() const { return path_; }
  const RowKind& kind() const { return *kind_; }  // REQUIRES: next() was called
  const EncodedRow& row() const { return row_; }
  int64_t number() const { return number_; }

  bool next() {
    if (limit_ >= 0 && number_ + 1 >= limit_) return false;
    if (dummy_ && number_ >= 0) return ++number_, true;
    if (!rows_->next()) return false;
    ++number_;
    if (!kind_) choose_kind();
    RowText text;
    kind_->read(*rows_, options_, vocab_size_, text);
    row_ = encode_row(*kind_, text, options_, tokenizer_);
    check_ids();
    return true;
  }

 private:
  void choose_kind() {
    kind_ = &kind_of(*rows_, options_);
    if (!tokenizer_ && kind_->loss_from != LossFrom::given)
      fail(path_.empty() ? "dummy" : path_, str("rows of kind ", kind_->name, " are text, and the model has no tokenizer"),
           "rows with input_ids, or a tokenizer.json or tokenizer.model beside the model", "add the tokenizer's files to the model folder");
  }

  void check_ids() const {
    if (kind_->loss_from == LossFrom::given || vocab_size_ <= 0) return;
    for (int32_t id : row_.example.ids)
      if (id >= vocab_size_)
        rows_->refuse("", str("the tokenizer gives id ", id, " (", tokenizer_->piece(id), ")"),
                      str("ids of the model, 0 to ", vocab_size_ - 1), "use the tokenizer that belongs to the model");
  }

  const DatasetOptions& options_;
  const Tokenizer* tokenizer_;
  int32_t vocab_size_;
  bool dummy_ = false;
  std::string path_;
  std::optional<Rows> rows_;
  int64_t limit_ = -1, number_ = -1;
  const RowKind* kind_ = nullptr;
  EncodedRow row_;
};

void add_notes(const RowKind& kind, const Tokenizer* tokenizer, int64_t cut_prompts, DatasetReport& report) {
  if (kind.chat) {
    report.chat_template = chatml().name;
    report.notes.push_back("conversations are written with the chatml template; the tokenizer's own chat_template is not read");
    if (tokenizer->id_of("<|im_start|>") < 0)
      report.notes.push_back("the tokenizer has no token <|im_start|>: the marks of chatml are several tokens each");
  } else if (kind.loss_from != LossFrom::given && tokenizer->eos() < 0) {
    report.notes.push_back("the tokenizer has no EOS: rows end without one");
  }
  if (cut_prompts > 0)
    report.notes.push_back(str("in ", cut_prompts,
                               " rows a token crosses the border between prompt and answer, so the loss begins a token "
                               "earlier or later than the answer"));
}

}  // namespace

Dataset Dataset::load(const DatasetOptions& options, const Tokenizer* tokenizer, int32_t vocab_size) {
  Dataset out;
  DatasetReport& report = out.report_;
  Reader reader(options, tokenizer, vocab_size);
  int64_t cut_prompts = 0;
  while (reader.next()) {
    const EncodedRow& row = reader.row();
    ++report.rows;
    report.truncated += row.truncated;
    if (!has_target(row.example)) {
      ++report.dropped_without_label;
      continue;
    }
    cut_prompts += row.prompt_cut;
    report.tokens += int64_t(row.example.ids.size());
    report.label_tokens += std::count_if(row.example.labels.begin() + 1, row.example.labels.end(), [](int32_t l) { return l != -100; });
    out.examples_.push_back(row.example);
    out.rows_.push_back(reader.number());
  }
  out.path_ = reader.path();
  report.kind = reader.kind().name;
  report.kept = out.size();
  add_notes(reader.kind(), tokenizer, cut_prompts, report);
  if (report.kept == 0)
    fail(out.path_.empty() ? "dummy" : out.path_,
         str("none of the ", report.rows, " rows has a token to learn within ", options.context_length, " tokens"),
         "at least one row whose answer begins before the context ends", "raise context_length, or check the data with tessera inspect");
  return out;
}

std::vector<InspectedRow> inspect_rows(const DatasetOptions& options, const Tokenizer* tokenizer, int32_t vocab_size, int64_t count) {
  std::vector<InspectedRow> out;
  Reader reader(options, tokenizer, vocab_size);
  while (int64_t(out.size()) < count && reader.next()) {
    const EncodedRow& row = reader.row();
    out.push_back({reader.number(), reader.kind().name, row.text, row.example, !has_target(row.example)});
  }
  return out;
}

}  // namespace tessera
