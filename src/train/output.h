// What a run leaves: a PEFT adapter folder, or a whole model in Hugging Face layout, with the tokenizer's files beside it.
// Collective: every rank calls, the shards are gathered, rank 0 writes.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "train/build.h"

namespace tessera {

// The whole array of a unit (f32, UnitLayout::trainable) from the part every rank owns. Points into `owned` when that is everything,
// else into `storage`. Collective.
const float* gather_unit(Sharded&, int unit, Tensor owned, std::vector<float>& storage);

// A set of arrays shaped like the trainable values: the masters, or a state of the optimizer.
struct TensorStream {
  std::string prefix;                     // before the tensor's name in the file
  std::function<Tensor(int unit)> owned;  // this rank's range of a unit, f32
};
// One safetensors file of all trainable tensors of the streams, in this dtype. Holds one gathered unit at a time. Collective.
void write_tensors(LoadedModel&, const std::string& path, const std::vector<TensorStream>&, Dtype,
                   const std::map<std::string, std::string>& metadata);

// adapter_config.json, adapter_model.safetensors (f32); with fsdp_qlora_file also model_state_dict.safetensors.
void write_adapter(LoadedModel&, const std::string& folder, bool fsdp_qlora_file);
// config.json (with this dtype), generation_config.json, model.safetensors, the tokenizer's files.
void write_model(LoadedModel&, const std::string& folder, Dtype);
// config.json of the model folder with this dtype, and its generation_config.json.
void write_config(const std::string& model_folder, const std::string& folder, Dtype);
// The tokenizer's files of the model folder.
void copy_tokenizer(const std::string& model_folder, const std::string& folder);

}  // namespace tessera
