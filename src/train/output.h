// What a run leaves: a PEFT adapter folder, or a whole model in Hugging Face layout, with the tokenizer's files beside it.
// Collective: every rank of the group calls, the shards are gathered, rank 0 writes. When rank 0 cannot write, it throws after all that is
// collective is done; the others know nothing of it.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "train/build.h"

namespace tessera {

// This rank's range of the elements of a unit, f32, of an array shaped like the trainable values: the masters, or a state of the optimizer.
struct Share {
  Range range;
  const float* values = nullptr;  // element range.begin
  Backend* device = nullptr;      // whose memory it is, where the host cannot read it; then only the backend's own thread may use it
};
using ShareOf = std::function<Share(int unit)>;
Share share_of(Tensor owned, Range);  // REQUIRES: owned has the elements of the range

// Elements `part` of a share, from part.begin on: where they are, or copied from the device to `storage`.
const float* read_share(const Share&, Range part, std::vector<float>& storage);
// The whole array of a unit (UnitLayout::trainable). Points into the share when every rank has everything and the host can read it, else
// into `storage`.
const float* gather_unit(Comm&, Share mine, std::vector<float>& storage);

// What the host holds beside the state while a rank of this group writes: all adapters, or one gathered unit. In the host's ledger:
// "gathered for saving".
size_t gather_bytes(const LoadedModel&, const Comm&);

struct TensorStream {
  std::string prefix;  // before the tensor's name in the file
  ShareOf share;
};
// What is written, by whom. A thread of its own has a group of its own, and shares that do not change.
struct OutputSource {
  const LoadedModel& model;
  Comm& comm;
  ShareOf values;
};
OutputSource masters_of(LoadedModel&);

// One safetensors file of all trainable tensors of the streams, in this dtype. Holds one gathered unit at a time. Other dtypes than f32 are
// converted by the model's backend, or, when that cannot reach host memory, by one of the host.
void write_tensors(const OutputSource&, const std::string& path, const std::vector<TensorStream>&, Dtype,
                   const std::map<std::string, std::string>& metadata);

// adapter_config.json, adapter_model.safetensors (f32); with fsdp_qlora_file also model_state_dict.safetensors.
void write_adapter(const OutputSource&, const std::string& folder, bool fsdp_qlora_file);
// config.json (with this dtype), generation_config.json, model.safetensors, the tokenizer's files.
void write_model(const OutputSource&, const std::string& folder, Dtype);
// adapter_config.json alone. Not collective.
void write_adapter_config(const LoadedModel&, const std::string& folder);
// config.json of the model folder with this dtype, and its generation_config.json. Not collective.
void write_config(const std::string& model_folder, const std::string& folder, Dtype);
// The tokenizer's files of the model folder. Not collective.
void copy_tokenizer(const std::string& model_folder, const std::string& folder);

}  // namespace tessera
