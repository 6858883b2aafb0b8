// CheckpointWriter: saves while training goes on. Training stands still while the state is copied; a thread with a group of its own does
// the rest. One save is in flight at most. Every rank has one; not thread-safe otherwise.
#pragma once
#include <future>
#include <memory>
#include <optional>
#include <string>

#include "train/checkpoint_write.h"

namespace tessera {

// Whether a run writes checkpoints beside the training, from a snapshot that stays in memory. One that only a stop would save has none.
bool writes_beside(const TrainConfig&);

class CheckpointWriter {
 public:
  // asynchronous: false writes from the state itself while training waits. Collective.
  CheckpointWriter(LoadedModel&, const Optimizer&, SaveOptions, bool asynchronous);
  ~CheckpointWriter();  // waits; when an exception is on its way it gives up the group first
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // What became of a save. All ranks get the same error.
  struct Outcome {
    int64_t step = 0;
    std::string folder;
    double seconds = 0;  // from its start to its end
    std::string error;   // "" when it was written and verified
  };
  // Starts a save; everything of the manifest but its files and tensors comes from the caller. Collective. REQUIRES: none in flight.
  void save(CheckpointManifest facts);
  bool in_flight() const { return result_.valid(); }
  bool written() const;  // in flight, and finish() will neither wait nor tell an error
  // Waits for the save in flight; nothing when there is none. Rethrows what is no failure to write.
  std::optional<Outcome> finish();

 private:
  Outcome write(Comm&, const StateOf&, CheckpointManifest);

  LoadedModel& model_;
  const SaveOptions options_;
  const bool asynchronous_;
  const StateOf live_;
  std::unique_ptr<Comm> own_;
  std::optional<Snapshot> snapshot_;
  std::future<void> committed_;  // the snapshot's memory
  std::shared_future<Outcome> result_;
};

}  // namespace tessera
