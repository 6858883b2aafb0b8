#include "models/peft.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr const char* tensor_file = "adapter_model.safetensors";
constexpr const char* fsdp_qlora_file = "model_state_dict.safetensors";
const std::string prefix = "base_model.model.";

enum class Part { a, b };
struct Matrix {
  std::string module;  // empty: no LoRA matrix of a linear layer
  Part part = Part::a;
};

// The ends of names in PEFT's files, in PEFT's running models, and in fsdp_qlora's files.
Matrix parse_name(const std::string& name) {
  static const std::pair<std::string, Part> ends[] = {{".lora_A.weight", Part::a},         {".lora_B.weight", Part::b},
                                                      {".lora_A.default.weight", Part::a}, {".lora_B.default.weight", Part::b},
                                                      {".lora_AB.0.weight", Part::a},      {".lora_AB.1.weight", Part::b}};
  for (const auto& [end, part] : ends) {
    if (!ends_with(name, end)) continue;
    std::string module = name.substr(0, name.size() - end.size());
    if (starts_with(module, prefix)) module.erase(0, prefix.size());
    if (ends_with(module, ".dora_layer")) return {};
    return {module, part};
  }
  return {};
}

std::string in_peft(const Matrix& m) { return prefix + m.module + (m.part == Part::a ? ".lora_A.weight" : ".lora_B.weight"); }

// "all-linear" as the names it means here: the last parts of the adapter's modules.
PeftConfig without_all_linear(PeftConfig c, const std::vector<TensorToWrite>& tensors) {
  if (!c.target_modules.all_linear()) return c;
  std::set<std::string> names;
  for (const auto& t : tensors) {
    const std::string module = parse_name(t.name).module;
    names.insert(module.substr(module.rfind('.') + 1));
  }
  c.target_modules.entries.assign(names.begin(), names.end());
  return c;
}

void check_pair(const TensorFiles& files, const std::string& module) {
  const StoredTensor& a = files.get(in_peft({module, Part::a}));
  const StoredTensor& b = files.get(in_peft({module, Part::b}));
  if (a.shape.size() == 2 && b.shape.size() == 2 && a.shape[0] == b.shape[1]) return;
  fail(a.where(), str("shape ", a.shape_text(), ", and ", b.name, " has ", b.shape_text()), "[r, in] and [out, r]",
       "save the adapter again");
}

void check_shape(const StoredTensor& t, const PartPlace& place) {
  const std::vector<int64_t> wanted(place.shape.dim.begin(), place.shape.dim.begin() + place.shape.rank);
  if (t.shape != wanted) {
    fail(t.where(), "shape " + t.shape_text(), shape_text(wanted) + ", as adapter_config.json and the base model demand",
         "give the base model and the rank that the adapter was trained with");
  }
  if (!t.known_dtype || (t.dtype != Dtype::f32 && t.dtype != Dtype::f16 && t.dtype != Dtype::bf16))
    fail(t.where(), "dtype " + t.dtype_name, "F32, F16, BF16", "save the adapter in one of these dtypes");
}

}  // namespace

std::string peft_name(const std::string& name) {
  const Matrix m = parse_name(name);
  return m.module.empty() ? "" : in_peft(m);
}

std::string fsdp_qlora_name(const std::string& name) {
  const Matrix m = parse_name(name);
  return m.module.empty() ? "" : m.module + (m.part == Part::a ? ".lora_AB.0.weight" : ".lora_AB.1.weight");
}

TensorFiles open_peft_tensors(const std::string& folder) {
  const std::string path = folder + "/" + tensor_file;
  if (!file_exists(path)) {
    fail(path, "no such file", "a folder with adapter_config.json and " + std::string(tensor_file),
         file_exists(folder + "/adapter_model.bin") ? "save the adapter with safe_serialization=True; adapter_model.bin is not read"
                                                    : "give the folder of a PEFT adapter");
  }
  TensorFiles files = TensorFiles::open(path);
  std::set<std::string> modules;
  for (const auto& [name, tensor] : files.all()) {
    if (peft_name(name) != name) {
      fail(tensor.where(), "is not built yet", prefix + "<module path>.lora_A.weight and .lora_B.weight",
           "use an adapter of linear layers only, without saved modules, biases or embeddings");
    }
    modules.insert(parse_name(name).module);
  }
  if (modules.empty()) fail(path, "holds no tensors", "a LoRA adapter", "give the folder of a PEFT adapter");
  for (const auto& module : modules) check_pair(files, module);
  return files;
}

void check_adapter(const Model& model, const TensorFiles& files) {
  std::set<std::string> wanted;
  for (const UnitLayout& unit : model.units) {
    for (const PartPlace& place : unit.parts) {
      if (parse_name(place.name).module.empty()) continue;
      const std::string name = peft_name(place.name);
      if (!files.find(name)) {
        fail(files.path(), "no tensor " + name, "a matrix for each module that adapter_config.json means",
             "correct target_modules in adapter_config.json, or save the adapter again");
      }
      check_shape(files.get(name), place);
      wanted.insert(name);
    }
  }
  for (const auto& [name, tensor] : files.all()) {
    if (!wanted.contains(name)) {
      fail(tensor.where(), "a module that adapter_config.json does not mean, or that the base model lacks",
           "matrices of the targeted modules", "correct target_modules in adapter_config.json, or give the right base model");
    }
  }
}

void write_peft_adapter(const std::string& folder, const PeftConfig& config, const std::vector<TensorToWrite>& tensors) {
  make_folder(folder);
  write_safetensors(folder + "/" + tensor_file, tensors, {{"format", "pt"}});
  write_peft_config(folder, config, tensors);
}

void write_peft_config(const std::string& folder, const PeftConfig& config, const std::vector<TensorToWrite>& tensors) {
  write_file_atomic(folder + "/adapter_config.json", peft_config_text(without_all_linear(config, tensors)));
}

void write_fsdp_qlora_adapter(const std::string& folder, const std::vector<TensorToWrite>& tensors) {
  make_folder(folder);
  std::vector<TensorToWrite> renamed = tensors;
  for (TensorToWrite& t : renamed) t.name = fsdp_qlora_name(t.name);
  write_safetensors(folder + "/" + fsdp_qlora_file, renamed, {});
}

void import_fsdp_qlora_adapter(const std::string& file, const PeftConfig& config, const std::string& folder) {
  const TensorFiles files = TensorFiles::open(file);
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, tensor] : files.all()) {
    if (name.find("dora_layer") != std::string::npos || name.find("magnitude") != std::string::npos)
      fail(tensor.where(), "DoRA is not built yet", "LoRA matrices", "use a file of custom_lora, custom_qlora, hqq_lora, lora or qlora");
    const std::string peft = peft_name(name);
    if (peft.empty()) continue;
    if (!tensor.known_dtype) fail(tensor.where(), "dtype " + tensor.dtype_name, "F32, F16, BF16", "save the adapter again");
    tensors.push_back({peft, tensor.dtype, tensor.shape, tensor.data});
  }
  if (tensors.empty())
    fail(file, "holds no LoRA matrices", "names with .lora_AB.0.weight or .lora_A.default.weight", "give an adapter's file");
  write_peft_adapter(folder, config, tensors);
}

}  // namespace tessera
