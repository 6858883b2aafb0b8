// Builders: from a request to a model that stands in memory, sharded and bound, ready for passes. train, eval and generate share them.
#pragma once
#include <memory>
#include <string>

#include "backend/backend.h"
#include "comm/comm.h"
#include "comm/device_comm.h"
#include "data/dataset.h"
#include "models/peft.h"
#include "train/config.h"
#include "train/pass.h"
#include "train/train_type.h"

namespace tessera {

struct ModelRequest {
  std::string folder;               // Hugging Face model folder
  std::string weights;              // "": the folder's own; else another folder with model.safetensors (a checkpoint of full fine-tuning)
  std::string adapter;              // PEFT folder to start from or to apply; "" with train_type adapters: a new adapter by `peft`
  std::string init = "pretrained";  // or "random"
  bool quantized = false;
  std::string quant_format = "nf4";
  bool double_quant = true;
  bool train_base = false;
  bool new_adapter = false;  // REQUIRES adapter empty
  PeftConfig peft;           // of the new adapter
  Dtype compute = Dtype::f32;
  std::string strategy = "full_shard";
  FrozenPlace frozen_place = FrozenPlace::automatic;
  Keeping keeping;               // of activations
  int64_t rows_on_host = 0;      // of a device: layers' inputs of so many tokens wait on the host; 0: none
  int64_t micro_batches = 0;     // of a training step on a device, which finds room for them made; 0: it makes room
  int64_t rows = 0, length = 0;  // of each of them at most; tokens of a row
  bool masters_on_host = false;  // of a device: masters and optimizer state live on the host, which updates them
  size_t arena_bytes = 0;        // room for them; 0: no limit, and on a device, which commits it at once, half of what is free
  bool values = true;            // false: nothing is read and no value is made; for the memory plan
  uint64_t seed = 42;
};

// Owns everything a pass needs. Not movable: the parts refer to each other.
struct LoadedModel {
  LoadedModel(const ModelRequest&, Comm&, Backend&);  // loads, with progress; collective
  LoadedModel(const LoadedModel&) = delete;

  ModelRequest request;
  Comm& comm;
  Backend& backend;
  ModelConfig config;
  PeftConfig peft;  // of the adapter, when there is one
  Model model;
  std::unique_ptr<Comm> device_comm;      // for memory of a device, when `comm` cannot reach it
  std::unique_ptr<Backend> masters_home;  // of the host, when masters live there beside a device
  Sharded sharded;
  Arena arena;
  Pass pass;
};

// For work on host memory that this backend cannot reach: one of the CPU with its threads. Null when it can.
std::unique_ptr<Backend> host_backend(const Backend&);

Dtype compute_dtype(const std::string& precision);  // fp32 -> f32, bf16 -> bf16; throws for others
ModelRequest model_request(const TrainConfig&);
DatasetOptions dataset_options(const TrainConfig&, const std::string& dataset);
// Threads of this rank: as asked, or (0) its share of the node's cores. Collective.
int rank_threads(const std::string& device, int64_t asked, Comm&);
void report_rows(const Dataset&, const char* what);  // says what was read, and what was dropped

}  // namespace tessera
