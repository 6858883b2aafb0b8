// Checkpoints: OUTPUT/checkpoint-STEP holds everything to continue a run to the bit: trainable values (f32), optimizer state, place in the
// data, and the configuration. Layout: docs/formats.md. Written under a temporary name, verified, renamed; checkpoint.json (names, sizes
// and SHA-256 of the other files) is written last: a folder without a valid one is no checkpoint.
#pragma once
#include <map>
#include <string>

#include "data/loader.h"
#include "train/build.h"
#include "train/optimizer.h"

namespace tessera {

struct CheckpointState {
  int64_t step = 0;  // optimizer steps done
  LoaderState loader;
  std::map<std::string, std::string> identity;  // what must be equal for the run to be the same run
  int64_t skipped_steps = 0;                    // of `step`: those whose loss or gradient was not finite
};

// What a run's length and window are resolved to.
struct RunShape {
  int64_t micro_batches = 1;  // per optimizer step, over all ranks
  int64_t total_steps = 0, warmup_steps = 0;
};
// What makes two runs the same: the settings that change a number of the training, the data's counts, and a hash of the model's
// config.json and of the first and last MiB of its weight files.
std::map<std::string, std::string> run_identity(const TrainConfig&, const RunShape&, const Dataset&);

// Collective. Returns the folder. Older checkpoints beyond `keep` (0: all) are deleted after this one is verified.
std::string save_checkpoint(LoadedModel&, const Optimizer&, const CheckpointState&, const std::string& output, int64_t keep);

// The checkpoint to resume: `asked` is a folder, or true/auto/latest for the newest complete one of `output`. "" when asked is "" or false.
// Checks the hashes; throws Error naming the file that is damaged.
// Rank 0 looks; collective.
std::string find_checkpoint(const std::string& asked, const std::string& output, Comm&);
// Before a run writes: checkpoints later than `done` belong to a run that is not this one. A fresh run (0) refuses them, a resumed one
// removes them.
void clear_later_checkpoints(const std::string& output, int64_t done);
CheckpointState read_checkpoint_state(const std::string& folder);
// Throws Error naming the first setting that differs.
void check_same_run(const CheckpointState&, const std::map<std::string, std::string>& now, const std::string& folder);
// The model request that starts from this checkpoint's values.
void start_from_checkpoint(ModelRequest&, const std::string& folder);
void load_optimizer(const LoadedModel&, Optimizer&, const std::string& folder);

}  // namespace tessera
