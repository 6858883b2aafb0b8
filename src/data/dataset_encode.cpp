#include "data/dataset_encode.h"

#include <algorithm>
#include <cassert>

#include "core/text.h"

namespace tessera {
namespace {

// TRL writes EOS into the text, fsdp_qlora appends its id.
void encode_text(const RowKind& kind, const RowText& row, const DatasetOptions& options, const Tokenizer& tokenizer, EncodedRow& out) {
  const std::string eos = tokenizer.eos() >= 0 ? tokenizer.eos_text() : "";
  const bool eos_as_id = kind.loss_from == LossFrom::prompt_count;
  out.text = row.prompt + row.answer;
  if (!kind.chat && !eos_as_id && !ends_with(row.answer, eos)) out.text += eos;
  std::vector<int32_t>& ids = out.example.ids;
  ids = tokenizer.encode(out.text, !kind.chat);
  const bool ended = !ids.empty() && ids.back() == tokenizer.eos();
  if (eos_as_id && tokenizer.eos() >= 0 && (options.dialect == "fsdp_qlora" || !ended)) ids.push_back(tokenizer.eos());
}

size_t first_label(const RowKind& kind, const RowText& row, const Tokenizer& tokenizer, EncodedRow& out) {
  const std::vector<int32_t>& ids = out.example.ids;
  const std::vector<int32_t> prompt = tokenizer.encode(row.prompt, !kind.chat);
  const auto [same, _] = std::mismatch(prompt.begin(), prompt.end(), ids.begin(), ids.end());
  out.prompt_cut = same != prompt.end();
  return kind.loss_from == LossFrom::divergence ? size_t(same - prompt.begin()) : std::min(prompt.size(), ids.size());
}

}  // namespace

EncodedRow encode_row(const RowKind& kind, RowText& row, const DatasetOptions& options, const Tokenizer* tokenizer) {
  EncodedRow out;
  if (kind.loss_from == LossFrom::given) {
    out.example = std::move(row.given);
  } else {
    assert(tokenizer);
    encode_text(kind, row, options, *tokenizer, out);
    out.example.labels = out.example.ids;
    if (kind.loss_from != LossFrom::start && options.completion_only)
      std::fill_n(out.example.labels.begin(), first_label(kind, row, *tokenizer, out), -100);
  }
  const auto limit = size_t(options.context_length);
  out.truncated = out.example.ids.size() > limit;
  if (out.truncated) {
    out.example.ids.resize(limit);
    out.example.labels.resize(limit);
  }
  return out;
}

bool has_target(const Example& example) {
  return !example.labels.empty() &&
         std::any_of(example.labels.begin() + 1, example.labels.end(), [](int32_t label) { return label != -100; });
}

}  // namespace tessera
