// Adapter folders of Hugging Face's PEFT: adapter_config.json, adapter_model.safetensors, and which linear layers a config means.
// Tensors are base_model.model.<module path>.lora_A.weight (r, in) and .lora_B.weight (out, r). Source: peft 0.21, LoraConfig,
// tuners_utils.py. What PEFT has and this program does not (DoRA, biases, saved modules, ...) is refused by the name of its key.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "io/safetensors.h"
#include "models/model.h"

namespace tessera {

// Which modules: names (a module matches when its path is the name or ends with "." + name), or one regular expression for whole paths.
struct ModuleNames {
  std::vector<std::string> entries;
  bool regex = false;  // entries[0] is the expression
  ModuleNames() = default;
  // As a user gives them: a single entry that is no plain name is an expression, {"all-linear"} is every linear layer but lm_head.
  ModuleNames(std::vector<std::string> given);
  bool empty() const { return entries.empty(); }
  bool all_linear() const;
  bool operator==(const ModuleNames&) const = default;
};

// The keys of adapter_config.json that this program uses; defaults are PEFT's.
struct PeftConfig {
  int64_t rank = 8;
  double alpha = 8;
  double dropout = 0;
  ModuleNames target_modules = std::vector<std::string>{"q_proj", "v_proj"};  // PEFT's for llama, mistral, qwen2, qwen3
  ModuleNames exclude_modules;
  std::vector<int64_t> layers_to_transform;                   // empty: all
  std::vector<std::string> layers_pattern;                    // what stands before the layer number; empty: anything
  std::vector<std::pair<std::string, int64_t>> rank_pattern;  // the first expression that matches wins
  std::vector<std::pair<std::string, double>> alpha_pattern;
  bool use_rslora = false;
  std::string init_lora_weights = "true";  // true, false, gaussian
  std::string base_model_name_or_path;     // "": null
  std::string revision;                    // "": null
  std::string task_type = "CAUSAL_LM";     // "": null
};

// FOLDER/adapter_config.json. Throws Error naming the file, the key, its value and what is allowed. Unknown keys are left out with a
// warning.
PeftConfig read_peft_config(const std::string& folder);
std::string peft_config_text(const PeftConfig&);  // with every key that PEFT 0.21 writes, sorted, indented by 2

struct TargetedModule {
  std::string path;
  int64_t rank = 0;
  double scaling = 1;  // alpha / rank, or alpha / sqrt(rank)
};
// The modules of `linear` (paths of all linear layers) that the config means, in the order of `linear`. Throws Error when a name or the
// expression matches nothing, or nothing is left after the exclusions.
std::vector<TargetedModule> targeted_modules(const PeftConfig&, const std::vector<std::string>& linear);

// FOLDER/adapter_model.safetensors: every tensor is a LoRA matrix of a linear layer, A and B in pairs of equal rank, or Error.
TensorFiles open_peft_tensors(const std::string& folder);
// Throws Error unless the files hold exactly the adapter matrices of the model, with their shapes, in F32, F16 or BF16.
void check_adapter(const Model&, const TensorFiles&);

// Both files, as PEFT 0.21 writes them; the folder is made. Tensor names as in the file. "all-linear" is written as the list it means.
void write_peft_adapter(const std::string& folder, const PeftConfig&, const std::vector<TensorToWrite>& tensors);
// adapter_config.json alone; of the tensors only the names are used.
void write_peft_config(const std::string& folder, const PeftConfig&, const std::vector<TensorToWrite>& tensors);

// fsdp_qlora's FOLDER/model_state_dict.safetensors. Tensor names <module path>.lora_A.weight are written as .lora_AB.0.weight, B as
// .lora_AB.1.weight.
void write_fsdp_qlora_adapter(const std::string& folder, const std::vector<TensorToWrite>& tensors);
// Such a file, or one with PEFT's names inside a running model (.lora_A.default.weight), as a PEFT folder. Base weights in it are left out.
void import_fsdp_qlora_adapter(const std::string& file, const PeftConfig&, const std::string& folder);

// The name in adapter_model.safetensors of a LoRA matrix named in any of these ways; "" when the name is no LoRA matrix of a linear layer.
std::string peft_name(const std::string& name);
std::string fsdp_qlora_name(const std::string& name);  // likewise, in model_state_dict.safetensors

}  // namespace tessera
