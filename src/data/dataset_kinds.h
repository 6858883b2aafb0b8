// Row kinds: which columns make which kind of row, and what text the model is to see of it. The table in dataset_kinds.cpp is the only
// place that asks what format a file has; a new kind is a row there.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/rows.h"

namespace tessera {

// Where the loss begins.
enum class LossFrom : uint8_t {
  start,         // every token is learned
  divergence,    // where the ids of prompt and of prompt + answer begin to differ (TRL)
  prompt_count,  // after as many ids as the prompt alone has (fsdp_qlora)
  given,         // the row brings ids and labels
};

// A row before it is tokenized: prompt + answer, or ids and labels.
struct RowText {
  std::string prompt, answer;
  Example given;
};

struct RowKind {
  const char* name;
  std::array<const char*, 3> columns;  // needed; nullptr where there are fewer
  LossFrom loss_from;
  bool chat;  // text of a chat template, which writes BOS and EOS itself
  void (*read)(const Rows&, const DatasetOptions&, int32_t vocab_size, RowText&);
  bool (*fits)(const Rows&, const DatasetOptions&);  // a further condition, or nullptr
};

// The first kind of the table that the current row has the columns of. Throws Error that lists the row's columns and the known kinds.
const RowKind& kind_of(const Rows&, const DatasetOptions&);

}  // namespace tessera
