// What a run leaves: a PEFT adapter folder, or a whole model in Hugging Face layout, with the tokenizer's files beside it.
// Collective: every rank calls, the shards are gathered, rank 0 writes.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "train/build.h"

namespace tessera {

// The whole array of a unit (f32, UnitLayout::trainable) from the part every rank owns. Points into `owned` when that is everything,
// else into `storage`. Collective.
const float* gather_unit(Sharded&, int unit, Tensor owned, std::vector<float>& storage);

// Every trainable tensor of the model as (name in files, f32, whole), from `owned(unit)`; `storage` holds what had to be gathered.
std::vector<TensorToWrite> gather_tensors(LoadedModel&, const std::function<Tensor(int unit)>& owned,
                                          std::vector<std::vector<float>>& storage);

// adapter_config.json, adapter_model.safetensors (f32); with fsdp_qlora_file also model_state_dict.safetensors.
void write_adapter(LoadedModel&, const std::string& folder, bool fsdp_qlora_file);
// config.json (with this dtype), generation_config.json, model.safetensors.
void write_model(LoadedModel&, const std::string& folder, Dtype);
// The tokenizer's files of the model folder.
void copy_tokenizer(const std::string& model_folder, const std::string& folder);

}  // namespace tessera
