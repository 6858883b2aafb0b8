// The training loop: for each step, this rank's micro-batches through the pass; then norm, clip, optimizer, schedule, log; evaluation and
// checkpoints when due. Loss of a step: the sum of -log p over the target tokens of all micro-batches and ranks, divided once by their
// count; added in the order of the micro-batches, so it is the same bits on any number of ranks.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "backend/backend.h"
#include "comm/comm.h"
#include "train/config.h"

namespace tessera {

struct TrainResult {
  int64_t steps = 0;         // optimizer steps done in all
  double first_loss = 0;     // of this run's first step
  double last_loss = 0;      // mean over the last 30 steps
  bool interrupted = false;  // stopped by a signal; a checkpoint was saved
  std::string saved;         // adapter or model folder; "" when nothing was
};

// What checkpoints tell about the program beside what the run knows itself.
struct ProgramFacts {
  std::string program;                               // "tessera 0.1.0"
  std::map<std::string, std::string> configuration;  // every option, as text
};

// The whole run on this rank. Collective. Throws Error.
// on_start: called on rank 0 when everything is read and checked, before the first file is written to output_dir.
// make: from TrainConfig::device and the threads of this rank to its device; none: the one that rank_device() gives it.
using MakeBackend = std::function<std::unique_ptr<Backend>(std::string_view device, int threads)>;
TrainResult train(const TrainConfig&, Comm&, const std::function<void()>& on_start = {}, const ProgramFacts& = {},
                  const MakeBackend& make = {});

// Called by signal handlers: the run ends after the current micro-batch, with a checkpoint of the last step that was finished. Counts until
// a run has ended by it.
void request_stop();

}  // namespace tessera
