// Loader: which rows go where, and when. Deterministic from (seed, epoch); independent of the number of ranks.
// An epoch is an order of all rows (shuffled or as in the file). It is cut into windows (one optimizer step each) of `micro_batches`
// micro-batches of `batch_size` rows; the last window and micro-batch of an epoch may be short. Micro-batch m of a window is worked on
// by rank m % ranks at micro-step m / ranks, so 1 rank with 4 accumulation steps and 4 ranks see the same micro-batches in the same order.
#pragma once
#include <cstdint>
#include <vector>

#include "data/dataset.h"

namespace tessera {

// A micro-batch, padded on the right to its longest row. B may be 0 (a rank with nothing to do in the last window).
struct Batch {
  int64_t B = 0, T = 0;
  std::vector<int32_t> ids;        // (B, T), padding id 0
  std::vector<int32_t> targets;    // (B, T): the label of the NEXT token, -100 where no loss is taken (labels shifted by one)
  std::vector<int32_t> positions;  // (B, T): 0..T-1
  std::vector<int32_t> starts;     // (B, T): first key each query may see (0 without packing)
  std::vector<int64_t> row_keys;   // (B): number of the sample since the start of training, the key of its random numbers
  std::vector<int64_t> rows;       // (B): row numbers in the file
  int64_t target_tokens = 0;       // targets != -100
  int64_t input_tokens = 0;        // without padding
};

Batch collate(const std::vector<const Example*>& examples);  // row_keys and rows are left 0

struct LoaderOptions {
  int64_t batch_size = 1;     // rows of a micro-batch
  int64_t micro_batches = 1;  // per optimizer step, over all ranks: ranks * accumulation
  uint64_t seed = 42;
  bool shuffle = true;
};

// Where training stands in the data; part of every checkpoint.
struct LoaderState {
  int64_t epoch = 0, window = 0;  // the next window to give
  bool operator==(const LoaderState&) const = default;
};

class Loader {
 public:
  Loader(const Dataset&, LoaderOptions);  // keeps a reference
  int64_t steps_per_epoch() const;        // windows of an epoch
  // This rank's micro-batches of the next window, micro-step by micro-step: always ceil(micro_batches / ranks) of them, some may be empty.
  std::vector<Batch> next(int rank, int ranks);
  LoaderState state() const { return state_; }
  void resume(LoaderState);

 private:
  const Dataset& data_;
  LoaderOptions options_;
  LoaderState state_;
  int64_t order_epoch_ = -1;
  std::vector<int64_t> order_;
};

}  // namespace tessera
