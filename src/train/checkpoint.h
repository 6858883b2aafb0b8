// Checkpoints of a run: which one to resume, what must be equal for that, and the state back from it. Layout: docs/formats.md, section 7;
// writing: checkpoint_writer.h.
#pragma once
#include <optional>
#include <string>

#include "train/build.h"
#include "train/checkpoint_files.h"
#include "train/optimizer.h"

namespace tessera {

struct Resumed {
  std::string folder;
  CheckpointManifest manifest;
};
// The checkpoint to resume: `asked` is a folder, or true/latest for the newest of `output`, or auto for the newest that is whole, which is
// nothing when there is none at all. Nothing when asked is "" or false. All hashes are checked: a damaged one throws Error naming the file;
// auto warns and takes the one before. Rank 0 looks; collective.
std::optional<Resumed> find_checkpoint(const std::string& asked, const std::string& output, Comm&);

// The accumulation steps that keep the micro-batches of a step on this number of ranks. Throws Error naming the numbers of ranks that can.
int64_t accumulation_steps(const Resumed&, int64_t asked, int ranks);

// Before a run writes: what earlier runs left unfinished is removed. Checkpoints later than `done` belong to a run that is not this one: a
// fresh run (nothing resumed) refuses any, a resumed one removes them.
void clear_later_checkpoints(const std::string& output, const std::optional<Resumed>&);

// The shape of an adapter comes from the checkpoint, and all that trains: those values are read later, by load_state.
void start_from_checkpoint(ModelRequest&, const std::string& folder);
// What this rank owns of the values; with an optimizer also of its states. Collective.
void load_state(LoadedModel&, Optimizer*, const std::string& folder);

}  // namespace tessera
