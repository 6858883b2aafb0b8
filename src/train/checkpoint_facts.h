// What a checkpoint says about its run beside the state: the settings that make two runs the same, and the files the run read.
#pragma once
#include <map>
#include <string>

#include "data/dataset.h"
#include "train/checkpoint_files.h"
#include "train/config.h"

namespace tessera {

// What a run's length and window are resolved to.
struct RunShape {
  int64_t micro_batches = 1;  // per optimizer step, over all ranks
  int64_t total_steps = 0, warmup_steps = 0;
};
// What makes two runs the same: the settings that change a number of the training, and the data's counts.
std::map<std::string, std::string> run_identity(const TrainConfig&, const RunShape&, const Dataset&);

// SHA-256 of the size (8 bytes, little-endian), the first and the last MiB, and 64 KiB at every multiple of 16 MiB: a file of 100 GB is
// known by 400 MB of it. Files of up to 2 MiB are read whole.
std::string sampled_sha256(const std::string& path);
// config.json, the weights (unless they are random), their index and the tokenizer's files of a model folder, by name; sampled hashes.
FileFactsByName base_files(const TrainConfig&);
// The data files by path; hashes of every byte.
FileFactsByName data_files(const Dataset&, const Dataset* eval);
// Of the row numbers in the order of an epoch, i64 each.
std::string epoch_order_sha256(const TrainConfig&, int64_t rows, int64_t epoch);

// Throws Error naming the first setting or file that differs from that of the run that wrote the checkpoint. A data file may have moved.
void check_same_run(const CheckpointManifest& then, const CheckpointManifest& now, const std::string& folder);

}  // namespace tessera
