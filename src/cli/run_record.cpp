#include "cli/run_record.h"

#include "core/text.h"
#include "io/file.h"

namespace tessera {
namespace {

// "" when no run of ours wrote this folder.
std::string find_record(const std::string& adapter) {
  if (adapter.empty()) return "";
  std::vector<std::string> folders{adapter};
  if (starts_with(file_name(adapter), "checkpoint-")) folders.push_back(adapter + "/..");
  for (const std::string& folder : folders)
    if (const std::string path = str(folder, "/", run_record_name); file_exists(path)) return path;
  return "";
}

// Weights saved in 16 bits are computed with in bf16, others in fp32.
std::string own_precision(const std::string& model) {
  const std::string dtype = read_model_config(model).dtype;
  return dtype == "bfloat16" || dtype == "float16" ? "bf16" : "fp32";
}

}  // namespace

void write_run_record(const TrainConfig& c, int ranks) {
  TrainConfig again = c;
  again.resume_from_checkpoint.clear();
  write_file_atomic(str(c.output_dir, "/", run_record_name), to_yaml(again) + (ranks > 1 ? str("world_size: ", ranks, "\n") : ""));
}

void add_model_fields(FieldList& fields, ModelChoice& m) {
  fields.group("Model");
  fields.add("model", &m.model, "Hugging Face model folder").also({"model_name", "model_name_or_path"}).needed();
  fields.add("adapter", &m.adapter, "PEFT adapter folder to apply (an output_dir, or one of its checkpoints)");
  fields
      .add("precision", &m.precision,
           "of base and activations: fp32 or bf16; none: as the adapter was trained, else as the model was saved")
      .one_of({"fp32", "bf16"})
      .means("", {"none"});
  fields.add("quant_format", &m.quant_format, "of the base: dense or nf4; none: as the adapter was trained, else dense")
      .one_of({"dense", "nf4"})
      .means("", {"none"});
  fields.add("double_quant", &m.double_quant, "scales of an nf4 base in 8 bits, when the adapter's run does not say");
  fields.add("threads", &m.threads, "threads; 0: all cores").from(0);
  add_device_field(fields, m.device);
}

std::optional<TrainConfig> recorded_run(const std::string& adapter) {
  const std::string record = find_record(adapter);
  if (record.empty()) return std::nullopt;
  return parse_train({"--config", record}).config;
}

ModelRequest choose_model(const ModelChoice& choice) {
  ModelRequest r;
  std::string precision = choice.precision, format = choice.quant_format;
  r.double_quant = choice.double_quant;
  if (const auto run = recorded_run(choice.adapter)) {
    if (precision.empty()) precision = run->precision;
    if (format.empty()) format = find_train_type(run->train_type).quantized ? run->quant_format : "dense";
    r.double_quant = run->double_quant;
  }
  r.folder = choice.model;
  r.adapter = choice.adapter;
  r.quantized = !format.empty() && format != "dense";
  if (r.quantized) r.quant_format = format;
  r.compute = compute_dtype(precision.empty() ? own_precision(choice.model) : precision);
  return r;
}

}  // namespace tessera
