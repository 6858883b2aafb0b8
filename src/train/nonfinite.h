// A step whose loss or gradient is not finite. It changes nothing: no value, no state of the optimizer. What caused it is found after the
// fact: the forward pass runs once more, dropout included, with a look at the output of each layer; when all of it is finite, the gradients
// are searched in the order in which the backward pass makes them. Stored weights and trained values are searched too.
// Everything here is collective and says the same on every number of ranks.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/loader.h"
#include "train/build.h"

namespace tessera {

// What the loop knows of such a step. The sums of gradients are still those of the step.
struct NonfiniteStep {
  int64_t step = 0;                   // from 1
  LoaderState place;                  // its window
  const std::vector<Batch>& batches;  // of this rank, in order
  const std::vector<double>& losses;  // sums of -log p of all micro-batches, in order
  std::string data;                   // the file that the rows come from
};

struct NonfiniteFinding {
  struct MicroBatch {
    double loss = 0;  // sum of -log p
    int64_t target_tokens = 0;
    std::vector<int64_t> rows;  // numbers in the file, from 0
  };
  std::string seen;                       // "the loss is NaN", "a gradient is not finite", "the gradient is longer than fp32 can say"
  std::string where;                      // "embedding output", "output of model.layers.3", "logits", "gradient of NAME"
  int64_t micro_batch = -1;               // in which it is; from here on -1: not known
  int64_t row = -1, token = -1;           // number in the file; position in the row
  std::vector<std::string> tensors;       // weights and adapter values that are not finite already, in the model's order
  bool trained = false;                   // one of them is trained: an earlier step has made it so
  std::vector<MicroBatch> micro_batches;  // in order, those with rows

  std::string details() const;  // of one line: all but `where`
  std::string reason() const;   // all of it
};

NonfiniteFinding find_nonfinite(LoadedModel&, const NonfiniteStep&);

// OUTPUT/nonfinite-STEP.json, by rank 0. Layout: docs/formats.md.
void write_nonfinite(const NonfiniteFinding&, const NonfiniteStep&, bool skipped, const std::string& output, const Comm&);
// Removes those of steps after `done`: they belong to a run that is not this one.
void clear_later_nonfinite(const std::string& output, int64_t done);

// Finds the cause, writes it down, and returns its reason when the step may be skipped: fewer than --max_skipped_steps were so far. Else
// throws Error.
std::string skip_or_stop(LoadedModel&, const NonfiniteStep&, int64_t skipped, const TrainConfig&);

bool trained_values_finite(LoadedModel&);
// Throws Error when a trained value is not finite: what is written to disk can be trained on.
void check_values_finite(LoadedModel&, int64_t step);

// The first element of a tensor that is NaN or infinite; -1 when there is none. Whole numbers always are finite.
int64_t first_nonfinite(Tensor);

}  // namespace tessera
