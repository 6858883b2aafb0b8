// TrainConfig: everything a user can choose for a run, resolved. Names are the canonical flag names; cli/config.cpp says each once more in
// its field list (help, aliases of the upstream programs, three default columns). The defaults here are Tessera's own column.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace tessera {

struct TrainConfig {
  // model and data
  std::string model;         // folder
  std::string dataset;       // file, or a name of fsdp_qlora
  std::string eval_dataset;  // "" : no evaluation
  std::string dataset_text_field = "text";
  int64_t dataset_samples = 512;
  int64_t context_length = 512;
  bool shuffle = true;
  bool completion_only_loss = true;
  std::string init = "pretrained";   // or "random": weights from the seed when the folder holds only config.json
  std::string defaults = "tessera";  // which column of defaults was taken: tessera, fsdp_qlora, trl

  // what trains
  std::string train_type = "qlora";
  std::string quant_format = "nf4";
  bool double_quant = true;
  int64_t lora_rank = 16;
  double lora_alpha = 32;
  double lora_dropout = 0;
  std::vector<std::string> lora_target_modules = {"all-linear"};  // names, or one regex, or all-linear
  std::vector<std::string> lora_exclude_modules;
  bool use_rslora = false;
  std::string init_lora_weights = "true";  // true, gaussian, false
  std::string adapter_init;                // folder of a PEFT adapter to start from

  // steps
  int64_t batch_size = 1;  // rows per rank and micro-batch
  int64_t gradient_accumulation_steps = 1;
  double num_epochs = 1;
  int64_t max_steps = -1;  // optimizer steps; > 0 wins over epochs
  uint64_t seed = 42;

  // optimizer and schedule
  std::string optimizer = "adamw";
  double lr = 2e-4;
  double weight_decay = 0;
  double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_epsilon = 1e-8;
  std::string lr_scheduler = "cosine";
  double warmup_steps = -1;       // -1: not given; in (0, 1): a ratio
  double warmup_ratio = 0.03;     // -1: not given
  double max_grad_norm = 1.0;     // 0: no clipping
  int64_t max_skipped_steps = 0;  // in all, whose loss or gradient is not finite

  // precision, memory, ranks
  std::string precision = "bf16";               // fp32, bf16
  std::string gradient_checkpointing = "auto";  // true, false
  std::string keep_layers = "auto";             // of how many layers all activations are kept
  bool use_cpu_offload = false;                 // frozen weights stay on the host, of a device
  bool use_activation_cpu_offload = false;      // layers' inputs wait on the host from forward to backward
  bool optimizer_offload = false;               // masters and optimizer state live on the host and are updated there
  bool force = false;                           // start although the plan says it does not fit
  std::string sharding_strategy = "full_shard";
  int64_t threads = 0;         // per rank; 0: cores of the node / ranks on it
  double comm_timeout = 1800;  // seconds a rank waits for the others before the run ends
  std::string device = "cpu";

  // output
  std::string output_dir = "output";
  bool save_model = true;
  std::string save_strategy = "steps";                   // of save_steps; epoch, no
  int64_t save_steps = 0;                                // 0: no checkpoints but those of a stop
  int64_t save_total_limit = 0;                          // 0: keep all
  bool async_save = true;                                // training goes on while a copy of the state is written
  std::string on_save_error = "stop";                    // or continue
  std::string fsdp_state_dict_type = "FULL_STATE_DICT";  // or SHARDED_STATE_DICT: each rank writes its own file
  bool load_best_model_at_end = false;
  std::string metric_for_best_model = "eval_loss";
  std::string resume_from_checkpoint;  // folder; "true", "latest": the newest of output_dir; "auto": the newest whole one, or none
  int64_t logging_steps = 1;
  std::string eval_strategy = "auto";  // steps, epoch, no; auto: as eval_steps says
  int64_t eval_steps = 0;              // 0: only at the end, when eval_dataset is given
  bool profile = false;                // output_dir/profile.json

  bool operator==(const TrainConfig&) const = default;
};

}  // namespace tessera
