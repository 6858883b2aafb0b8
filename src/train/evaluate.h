// Evaluation: the token-mean loss of a data set, rows spread over the ranks. The same forward pass as training.
#pragma once
#include "comm/comm.h"
#include "data/dataset.h"
#include "train/pass.h"

namespace tessera {

struct Evaluation {
  double loss = 0;  // mean of -log p over all target tokens
  int64_t tokens = 0, rows = 0;
  double perplexity() const;
};

// Collective. Rows in file order, batches of `batch_size` rows, the same on every number of ranks.
Evaluation evaluate(Pass&, Comm&, const Dataset&, int64_t batch_size, bool show_progress);

}  // namespace tessera
