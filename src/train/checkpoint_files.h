// What lies in a checkpoint folder: its manifest, checked before anything is believed, and a reader of the state in it that maps the files
// and never loads a whole one. Layout: docs/formats.md, section 7. Nothing here is collective.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

namespace tessera {

inline constexpr const char* checkpoint_manifest_name = "checkpoint.json";
inline constexpr int checkpoint_format = 2;

struct FileFacts {
  uint64_t bytes = 0;
  std::string sha256;  // 64 hexadecimal digits, lower case
  bool operator==(const FileFacts&) const = default;
};
using FileFactsByName = std::map<std::string, FileFacts>;

// Elements [begin, end) of a flattened tensor, held by this file.
struct CheckpointPiece {
  std::string file;
  int64_t begin = 0, end = 0;
  bool operator==(const CheckpointPiece&) const = default;
};
struct CheckpointTensor {
  std::vector<int64_t> shape;
  std::vector<CheckpointPiece> pieces;  // ascending, covering the tensor exactly, one to a file; empty in a full checkpoint
  int64_t size() const;
  bool operator==(const CheckpointTensor&) const = default;
};

struct CheckpointManifest {
  std::string program;
  bool sharded = false;       // SHARDED_STATE_DICT, else FULL_STATE_DICT
  int64_t step = 0;           // optimizer steps done
  int64_t skipped_steps = 0;  // of them: those whose loss or gradient was not finite
  int64_t epoch = 0;          // place in the data: the next window to give
  int64_t window = 0;         //
  int64_t ranks = 1;          // that wrote it
  int64_t micro_batches = 1;  // of a step over all ranks
  uint64_t seed = 0;
  std::string strategy, train_type;
  std::string model;                                 // folder of the base
  std::string epoch_order_sha256;                    // of the row numbers of this epoch, i64 each, in their order
  std::map<std::string, std::string> run;            // what must be equal for the run to be the same run
  std::map<std::string, std::string> configuration;  // every option, as text
  int64_t best_step = -1;                            // the checkpoint with the lowest eval_loss so far; -1: none is kept
  double best_eval_loss = 0;
  FileFactsByName base_files;                       // of the base folder, by name; hashes of samples (sampled_sha256)
  FileFactsByName data_files;                       // by path
  std::map<std::string, CheckpointTensor> tensors;  // of a sharded checkpoint
  FileFactsByName files;                            // of this folder, all but the manifest
  bool operator==(const CheckpointManifest&) const = default;
};

// "SHARDED_STATE_DICT", "FULL_STATE_DICT".
std::string_view state_dict_kind(bool sharded);

std::string checkpoint_manifest_text(const CheckpointManifest&);
// Throws Error naming `where` and the key for text that is not exactly such a manifest: kinds of values, whole numbers within bounds, file
// names without a folder, hashes, pieces that do not cover their tensor or lie in files that are not listed.
CheckpointManifest parse_checkpoint_manifest(const std::string& text, const std::string& where);
// Of a folder; also checks that every file it lists is there with its size. Throws Error naming the file.
CheckpointManifest read_checkpoint_manifest(const std::string& folder);
// Reads all files and compares their SHA-256. Throws Error naming the first that differs.
void check_checkpoint_files(const CheckpointManifest&, const std::string& folder);

// A folder below an output folder that has a manifest.
struct FoundCheckpoint {
  std::string folder;
  int64_t step = 0;   // of the manifest; of a damaged one, of the name (-1: it has none)
  std::string fault;  // what is wrong with the manifest or the sizes; "" when it is valid
};
// Every folder checkpoint-* of `output` with a manifest, by rising step. Unfinished ones (.tmp, .old-*, .gone-*) are not looked at.
std::vector<FoundCheckpoint> list_checkpoints(const std::string& output);
// Those of them that are valid.
std::vector<FoundCheckpoint> valid_checkpoints(const std::string& output);

// The trainable state of a checkpoint of either kind.
class CheckpointReader {
 public:
  // Maps the files, checks that they hold what the manifest says. Hashes are not computed: see check_checkpoint_files.
  static CheckpointReader open(const std::string& folder);
  const CheckpointManifest& manifest() const { return manifest_; }
  const std::string& folder() const { return folder_; }
  // Every trainable tensor and its shape, by its name in the model folder (without "base_model.model.").
  const std::map<std::string, std::vector<int64_t>>& tensors() const { return shapes_; }
  // Elements [begin, begin + count) of the flattened tensor `name`; state: "values", "exp_avg", "exp_avg_sq". Throws Error when there is no
  // such tensor. REQUIRES: the range inside the tensor.
  void read(std::string_view state, const std::string& name, int64_t begin, int64_t count, float* out) const;
  void forget_pages() const;  // what was read need not stay in memory

 private:
  struct Part {
    int64_t begin = 0, end = 0;
    const StoredTensor* stored = nullptr;
  };
  void open_full();
  void open_sharded();
  const TensorFiles& add_file(const std::string& name);

  std::string folder_;
  CheckpointManifest manifest_;
  std::map<std::string, TensorFiles> files_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, std::vector<Part>> parts_;  // by "STATE:NAME"
};

}  // namespace tessera
