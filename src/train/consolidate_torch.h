// PyTorch's checkpoints for train/consolidate.h.
#pragma once
#include <string>

#include "train/consolidate.h"

namespace tessera {

// The checkpoint of PyTorch that `path` is or holds under accelerate's names (pytorch_model_fsdp_0, pytorch_model_fsdp.bin); "" when none.
std::string find_torch_checkpoint(const std::string& path);

// Writes into `folder`, which exists and is empty. What it becomes is read off the tensors' names: base_model.model. is PEFT's,
// state.NAME.exp_avg an optimizer's (optimizer.safetensors, as in our checkpoints), anything else a model.
Consolidated consolidate_torch(const ConsolidateRequest&, const std::string& checkpoint, const std::string& folder);

}  // namespace tessera
