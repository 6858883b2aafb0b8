#include "train/consolidate_torch.h"

#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/text.h"
#include "io/json.h"
#include "io/torch_checkpoint.h"
#include "train/output.h"
#include "train/tensor_source.h"

namespace tessera {
namespace {

constexpr const char* adapter_config = "adapter_config.json";
const std::string peft_prefix = "base_model.model.";

// Keys below the wrappers of accelerate: {"model": ...} and {"optimizer": ...}.
std::vector<std::string> inner_path(const TorchTensor& t) {
  const bool wrapped = t.path.size() > 1 && (t.path[0] == "model" || t.path[0] == "optimizer");
  return {t.path.begin() + wrapped, t.path.end()};
}
bool of_optimizer(const TorchTensor& t) {
  const auto path = inner_path(t);
  return path.size() == 3 && path[0] == "state";
}
bool of_settings(const TorchTensor& t) { return inner_path(t)[0] == "param_groups"; }  // an optimizer's rate as a tensor

// As our checkpoints name them: exp_avg:NAME.
std::string state_name(const TorchTensor& t) {
  const auto path = inner_path(t);
  return path[2] + ":" + path[1];
}
std::string weight_name(const TorchTensor& t) { return join(inner_path(t), "."); }

// A running PEFT model has the base's weights, too, and names its adapter "default".
bool of_adapter(const std::string& name) {
  return name.find(".lora_") != std::string::npos || name.find(".modules_to_save.") != std::string::npos;
}

std::vector<TensorSource> sources_of(TorchCheckpoint& checkpoint, const auto& name_of_tensor) {
  std::vector<TensorSource> out;
  std::set<std::string> names;
  for (const TorchTensor& t : checkpoint.tensors()) {
    const std::string name = name_of_tensor(t);
    if (name.empty()) continue;
    if (!names.insert(name).second) fail(checkpoint.path(), str("two tensors ", name), "different names", "save the checkpoint again");
    out.push_back({name, t.dtype, t.shape, [&checkpoint, &t](std::span<std::byte> to) { checkpoint.read(t, to); }});
  }
  return out;
}

// FOLDER/NAME in the folder that was given, else beside the checkpoint or one above.
std::string find_beside(const std::string& checkpoint, const std::string& name, const std::string& given, const std::string& what,
                        const std::string& option) {
  if (!given.empty()) {
    const std::string path = folder_exists(given) ? given + "/" + name : given;
    if (!file_exists(path)) fail(option + " " + given, str("has no ", name), what, "check the path");
    return path;
  }
  for (const std::string& folder : {checkpoint, parent_folder(checkpoint)})
    if (file_exists(folder + "/" + name)) return folder + "/" + name;
  fail(checkpoint, str("has no ", name, " in it or beside it"), what, str("give it with ", option, " FOLDER"));
}

// The rank of the matrices must be the configuration's; with a pattern of ranks it is not compared.
void check_rank(const std::vector<TensorSource>& tensors, const std::string& config_path) {
  const Json config = read_json(config_path);
  if (!config.is_object() || !config.contains("peft_type"))
    fail(config_path, "no key peft_type", "the configuration of a PEFT adapter", "give the adapter_config.json of the run");
  if (config.contains("rank_pattern") && !config["rank_pattern"].empty()) return;
  for (const TensorSource& t : tensors) {
    if (!ends_with(t.name, ".lora_A.weight") || t.shape.empty() || !config.contains("r")) continue;
    if (config["r"] != t.shape[0])
      fail(config_path, str("r is ", config["r"].dump()), str(t.shape[0], ", as ", t.name, " has rows"),
           "give the adapter_config.json of this run");
  }
}

void write_adapter_files(const ConsolidateRequest& r, TorchCheckpoint& checkpoint, const std::string& folder, Consolidated& out) {
  bool running = false;
  for (const TorchTensor& t : checkpoint.tensors())
    running =
        running || weight_name(t).find(".base_layer.") != std::string::npos || weight_name(t).find(".lora_A.default.") != std::string::npos;
  const auto tensors = sources_of(checkpoint, [&](const TorchTensor& t) {
    const std::string name = weight_name(t);
    if (!running) return name;
    return of_adapter(name) ? replace_all(name, ".default.", ".") : "";
  });
  const size_t left = checkpoint.tensors().size() - tensors.size();
  if (left) out.note = str(left, " tensors of the base were left out");
  const std::string config = find_beside(checkpoint.path(), adapter_config, r.adapter_config,
                                         "the adapter's settings, which a checkpoint of PyTorch does not have", "--adapter_config");
  check_rank(tensors, config);
  out.bytes = write_sources(folder + "/adapter_model.safetensors", tensors, dtype_asked(r.dtype), {{"format", "pt"}});
  copy_file_atomic(config, str(folder, "/", adapter_config));
  out.tensors = int64_t(tensors.size());
}

void write_model_files(const ConsolidateRequest& r, TorchCheckpoint& checkpoint, const std::string& folder, Consolidated& out) {
  const auto tensors = sources_of(checkpoint, weight_name);
  const std::string config = find_beside(checkpoint.path(), "config.json", r.model,
                                         "the model's configuration, which a checkpoint of PyTorch does not have", "--model");
  const auto wanted = dtype_asked(r.dtype);
  out.bytes = write_sources(folder + "/model.safetensors", tensors, wanted, {{"format", "pt"}});
  write_config(parent_folder(config), folder, converted_dtype(tensors[0], wanted));
  copy_tokenizer(parent_folder(config), folder);
  out.tensors = int64_t(tensors.size());
}

}  // namespace

std::string find_torch_checkpoint(const std::string& path) {
  for (const std::string& candidate : {path, path + "/pytorch_model_fsdp_0", path + "/pytorch_model_fsdp.bin"})
    if (TorchCheckpoint::present(candidate)) return candidate;
  return "";
}

Consolidated consolidate_torch(const ConsolidateRequest& r, const std::string& path, const std::string& folder) {
  TorchCheckpoint checkpoint = TorchCheckpoint::open(path);
  if (checkpoint.tensors().empty())
    fail(path, "holds no tensors", "a checkpoint with tensors",
         "PEFT with FSDP1 writes none when adapter_only is set; save the whole state dict, or use FSDP2");
  bool optimizer = false, adapter = false;
  for (const TorchTensor& t : checkpoint.tensors()) {
    optimizer = optimizer || of_optimizer(t);
    adapter = adapter || starts_with(weight_name(t), peft_prefix);
  }
  Consolidated out{path, optimizer ? "optimizer" : adapter ? "adapter" : "model", "", 0, 0};
  if (optimizer) {
    const auto tensors = sources_of(checkpoint, [](const TorchTensor& t) { return of_settings(t) ? "" : state_name(t); });
    out.bytes = write_sources(folder + "/optimizer.safetensors", tensors, dtype_asked(r.dtype), {});
    out.tensors = int64_t(tensors.size());
  } else if (adapter) {
    write_adapter_files(r, checkpoint, folder, out);
  } else {
    write_model_files(r, checkpoint, folder, out);
  }
  return out;
}

}  // namespace tessera
