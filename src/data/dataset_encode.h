// From the text of a row to ids and labels. The rules of TRL's SFTTrainer and of fsdp_qlora's InstructionDataset, row by row.
#pragma once
#include "data/dataset.h"
#include "data/dataset_kinds.h"

namespace tessera {

struct EncodedRow {
  std::string text;  // what was tokenized; "" for pre-tokenized rows
  Example example;   // cut at context_length
  bool truncated = false;
  bool prompt_cut = false;  // the prompt's ids are not a prefix of the row's: a token holds the end of the one and the start of the other
};

// Takes the text or the ids out of `row`. REQUIRES: tokenizer is not null unless the kind's ids are given.
EncodedRow encode_row(const RowKind&, RowText& row, const DatasetOptions&, const Tokenizer* tokenizer);

// Something is left to learn: the label at position 0 is never predicted.
bool has_target(const Example&);

}  // namespace tessera
