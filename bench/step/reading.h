// The timing itself: a model is loaded as the product does it, and its steps, or its new tokens, are timed one by one.
#pragma once
#include <vector>

#include "backend/backend.h"
#include "bench/process.h"
#include "bench/step/request.h"
#include "comm/comm.h"

namespace tessera {

struct Reading {
  double load_seconds = 0;      // reading or making the weights, quantizing, the optimizer's memory
  double first_seconds = 0;     // from the start of the process to the end of the first step (generation: to the first new token)
  std::vector<double> seconds;  // of each later step or token
  double tokens = 0;            // of one step, all ranks
  double flops = 0;             // of one token (bench/flops.h)
  double bytes = 0;             // generation: weights read for one token
  double loss = 0;              // token mean of the last step, all ranks
  Resident memory;              // after the last step, the largest of the ranks in each field
  size_t device_peak = 0;       // bytes of a device with memory of its own at most, by its ledger; the largest of the ranks
  size_t planned = 0;           // training on such a device: what the plan says it needs, of which
  size_t planned_constant = 0;  // so much for context and libraries; and
  size_t constant = 0;          // so much they hold at the end; the largest of the ranks, 0: not known
  double median() const;        // of seconds
};

// Collective. Throws Error.
Reading time_training(const StepRequest&, Comm&, Backend&);
// One rank.
Reading time_generation(const StepRequest&, Comm&, Backend&);

}  // namespace tessera
