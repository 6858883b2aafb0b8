// A checkpoint as a folder that other programs read: a PEFT adapter, or a Hugging Face model. From our checkpoints (both kinds), from
// PyTorch's sharded ones (torch.distributed.checkpoint, as accelerate and FSDP write them) and from its whole ones (torch.save). Tensors
// pass one at a time: memory holds the largest, in both dtypes. One process, no ranks.
#pragma once
#include <cstdint>
#include <string>

namespace tessera {

struct ConsolidateRequest {
  std::string from;            // a run's folder (its newest checkpoint), a checkpoint's folder, or a file of torch.save
  std::string to;              // a folder that is not there, or is empty
  std::string model;           // folder of config.json and tokenizer; "": what the checkpoint names, or what lies beside it
  std::string adapter_config;  // of a PyTorch checkpoint of an adapter: adapter_config.json or its folder; "": beside it
  std::string dtype;           // fp32, bf16; "": a model of ours as it computes, anything else as it is stored
};

struct Consolidated {
  std::string from;  // the checkpoint that was taken
  std::string what;  // "adapter", "model", "optimizer"
  std::string note;  // what was left out, or ""
  int64_t tensors = 0;
  size_t bytes = 0;
};

// All or nothing: the folder is written under a temporary name, every file is read back, then it is renamed. Throws Error naming the file
// for anything that is missing, damaged or does not fit.
Consolidated consolidate(const ConsolidateRequest&);

}  // namespace tessera
