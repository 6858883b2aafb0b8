// Writing a checkpoint: the state of the ranks, a copy of it, and the folder made from either by all ranks together.
#pragma once
#include <array>
#include <functional>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "train/checkpoint_files.h"
#include "train/optimizer.h"
#include "train/output.h"

namespace tessera {

inline constexpr std::array state_names = {"values", "exp_avg", "exp_avg_sq"};
// What this rank writes of array `state` (of state_names). Over all ranks the shares of a unit are disjoint and complete.
using StateOf = std::function<Share(size_t state, int unit)>;

// The state itself, valid and changing as long as these live, in the memory where it is. Where every rank holds all, each writes an even
// part.
StateOf live_state(LoadedModel&, const Optimizer&);

// A copy of the state in host memory. It is taken once; "checkpoint snapshot".
class Snapshot {
 public:
  Snapshot(const StateOf& live, int units, Backend&);
  void commit();  // makes the system give the memory now, which else the first copy waits for
  void take();    // copies the live state
  Share share(size_t state, int unit) const;

 private:
  const StateOf live_;
  Backend& backend_;
  std::vector<Range> ranges_;   // by unit
  std::vector<size_t> begins_;  // of a unit in one state's part of the memory, elements
  size_t total_ = 0;
  Buffer memory_;
};

struct SaveOptions {
  std::string output;
  int64_t keep = 0;  // newest checkpoints that stay; 0: all
  std::string log;   // a file whose lines must be on the disk before the checkpoint counts; "": none
};

// A rank could not write; every rank of the group throws it, with the words of the first one.
struct SaveError : Error {
  using Error::Error;
};

// Writes OUTPUT/checkpoint-STEP from the state and `facts` (everything of the manifest but files and tensors), verifies it, then deletes
// older ones beyond `keep`; never facts.best_step. Returns the folder. What was there before stays when it throws. Collective.
std::string write_checkpoint(const LoadedModel&, Comm&, const StateOf&, CheckpointManifest facts, const SaveOptions&);

}  // namespace tessera
