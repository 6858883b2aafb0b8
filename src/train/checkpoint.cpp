#include "train/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "io/json.h"
#include "train/output.h"

namespace tessera {
namespace {

constexpr const char* manifest_name = "checkpoint.json";
constexpr const char* optimizer_name = "optimizer.safetensors";
constexpr int manifest_format = 1;

void write_optimizer(LoadedModel& m, const Optimizer& optimizer, const std::string& folder) {
  const std::vector<TensorStream> states{{"exp_avg:", [&](int unit) { return optimizer.exp_avg(unit); }},
                                         {"exp_avg_sq:", [&](int unit) { return optimizer.exp_avg_sq(unit); }}};
  write_tensors(m, str(folder, "/", optimizer_name), states, Dtype::f32, {});
}

void write_manifest(const CheckpointState& state, const std::string& folder) {
  Json files = Json::object();
  for (const std::string& name : list_folder(folder)) {
    const std::string path = folder + "/" + name;
    files[name] = {{"bytes", MappedFile(path).size()}, {"sha256", sha256_file(path)}};
  }
  const Json manifest = {
      {"format", manifest_format},   {"program", "tessera"},          {"step", state.step},    {"skipped_steps", state.skipped_steps},
      {"epoch", state.loader.epoch}, {"window", state.loader.window}, {"run", state.identity}, {"files", files}};
  write_file_atomic(folder + "/" + manifest_name, manifest.dump(1) + "\n");
}

int64_t step_of(const std::string& name) {
  const std::string prefix = "checkpoint-", digits = starts_with(name, prefix) ? name.substr(prefix.size()) : "";
  const bool number = !digits.empty() && digits.size() < 18 && digits.find_first_not_of("0123456789") == std::string::npos;
  return number ? std::stoll(digits) : -1;
}

// Steps of the complete checkpoints of a folder, rising.
std::vector<int64_t> checkpoint_steps(const std::string& output) {
  std::vector<int64_t> steps;
  for (const std::string& name : list_folder(output))
    if (step_of(name) >= 0 && file_exists(str(output, "/", name, "/", manifest_name))) steps.push_back(step_of(name));
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::string checkpoint_folder(const std::string& output, int64_t step) { return str(output, "/checkpoint-", step); }

void check_files(const Json& manifest, const std::string& folder) {
  for (const auto& [name, facts] : manifest.at("files").items()) {
    const std::string path = folder + "/" + name, remedy = "resume from an older checkpoint of this run";
    if (!file_exists(path)) fail(path, "is missing", str("the file that ", manifest_name, " lists"), remedy);
    if (sha256_file(path) != facts.at("sha256").get<std::string>())
      fail(path, "is damaged: its SHA-256 is not the one that was written", facts.at("sha256").get<std::string>(), remedy);
  }
}

Json read_manifest(const std::string& folder) {
  const std::string path = str(folder, "/", manifest_name);
  if (!file_exists(path))
    fail(str("--resume_from_checkpoint ", folder), str("has no ", manifest_name), "a folder checkpoint-STEP that a run has completed",
         "give such a folder, or true for the newest of --output_dir");
  Json manifest = read_json(path);
  if (!manifest.contains("format") || manifest.at("format") != manifest_format)
    fail(path, "is of a format this program does not know", str("format ", manifest_format), "use the version of tessera that wrote it");
  return manifest;
}

}  // namespace

namespace {
// The headers of the weights' files name every tensor, shape and place; with the configuration they tell models apart without reading them.
std::string model_hash(const TrainConfig& c) {
  Sha256 hash;
  const auto add = [&](std::string_view text) { hash.update(std::as_bytes(std::span(text))); };
  add(read_file(c.model + "/config.json"));
  add(c.init);
  for (const std::string& name : list_folder(c.model)) {
    if (!ends_with(name, ".safetensors")) continue;
    const MappedFile file(c.model + "/" + name);
    const size_t ends = std::min<size_t>(file.size(), size_t(1) << 20);
    add(str(name, file.size()));
    hash.update({file.data(), ends});
    hash.update({file.data() + file.size() - ends, ends});
  }
  return hash.hex();
}
}  // namespace

std::map<std::string, std::string> run_identity(const TrainConfig& c, const RunShape& shape, const Dataset& data) {
  return {{"model", model_hash(c)},
          {"train_type", c.train_type},
          {"precision", c.precision},
          {"quant_format", c.quant_format},
          {"double_quant", str(c.double_quant)},
          {"lora_rank", str(c.lora_rank)},
          {"lora_alpha", str(c.lora_alpha)},
          {"lora_dropout", str(c.lora_dropout)},
          {"dataset_rows", str(data.size())},
          {"dataset_tokens", str(data.report().tokens)},
          {"context_length", str(c.context_length)},
          {"batch_size", str(c.batch_size)},
          {"micro_batches", str(shape.micro_batches)},
          {"total_steps", str(shape.total_steps)},
          {"warmup_steps", str(shape.warmup_steps)},
          {"defaults", c.defaults},
          {"lora_target_modules", join(c.lora_target_modules, ",")},
          {"lora_exclude_modules", join(c.lora_exclude_modules, ",")},
          {"use_rslora", str(c.use_rslora)},
          {"dataset_text_field", c.dataset_text_field},
          {"completion_only_loss", str(c.completion_only_loss)},
          {"dataset_label_tokens", str(data.report().label_tokens)},
          {"shuffle", str(c.shuffle)},
          {"seed", str(c.seed)},
          {"optimizer", c.optimizer},
          {"lr", str(c.lr)},
          {"weight_decay", str(c.weight_decay)},
          {"adam_beta1", str(c.adam_beta1)},
          {"adam_beta2", str(c.adam_beta2)},
          {"adam_epsilon", str(c.adam_epsilon)},
          {"max_grad_norm", str(c.max_grad_norm)},
          {"lr_scheduler", c.lr_scheduler}};
}

std::string save_checkpoint(LoadedModel& m, const Optimizer& optimizer, const CheckpointState& state, const std::string& output,
                            int64_t keep) {
  const std::string folder = checkpoint_folder(output, state.step), temporary = folder + ".tmp";
  if (m.comm.rank() == 0) {
    remove_all(temporary);
    make_folder(temporary);
  }
  m.comm.barrier();
  if (m.request.train_base) {
    write_model(m, temporary, Dtype::f32);
  } else {
    write_adapter(m, temporary, false);
  }
  write_optimizer(m, optimizer, temporary);
  if (m.comm.rank() == 0) {
    write_manifest(state, temporary);
    rename_folder(temporary, folder);
    check_files(read_manifest(folder), folder);
    const auto steps = checkpoint_steps(output);
    for (size_t i = 0; keep > 0 && i + size_t(keep) < steps.size(); ++i)
      if (steps[i] != state.step) remove_all(checkpoint_folder(output, steps[i]));
  }
  m.comm.barrier();
  return folder;
}

namespace {
std::string find_and_check(const std::string& asked, const std::string& output) {
  const std::string word = lower(asked);
  if (word.empty() || word == "false") return "";
  std::string folder = asked;
  if (word == "true" || word == "auto" || word == "latest") {
    const auto steps = checkpoint_steps(output);
    if (steps.empty())
      fail(str("--resume_from_checkpoint ", asked), str("found no complete checkpoint in ", output),
           "folders checkpoint-STEP with checkpoint.json", "start without --resume_from_checkpoint, or give the right --output_dir");
    folder = checkpoint_folder(output, steps.back());
  }
  check_files(read_manifest(folder), folder);
  return folder;
}
}  // namespace

std::string find_checkpoint(const std::string& asked, const std::string& output, Comm& comm) {
  return gather_strings(comm, comm.rank() == 0 ? find_and_check(asked, output) : "")[0];
}

void clear_later_checkpoints(const std::string& output, int64_t done) {
  for (const int64_t step : checkpoint_steps(output)) {
    if (step <= done) continue;
    if (done == 0)
      fail(str("--output_dir ", output), str("holds checkpoint-", step, " of an earlier run"),
           "a folder without checkpoints, or a run that is resumed",
           "add --resume_from_checkpoint true, choose another folder, or remove the checkpoints");
    remove_all(checkpoint_folder(output, step));
  }
}

CheckpointState read_checkpoint_state(const std::string& folder) {
  const Json manifest = read_manifest(folder);
  CheckpointState state;
  state.step = manifest.at("step").get<int64_t>();
  state.skipped_steps = manifest.value("skipped_steps", int64_t(0));
  state.loader = {manifest.at("epoch").get<int64_t>(), manifest.at("window").get<int64_t>()};
  state.identity = manifest.at("run").get<std::map<std::string, std::string>>();
  return state;
}

void check_same_run(const CheckpointState& state, const std::map<std::string, std::string>& now, const std::string& folder) {
  for (const auto& [key, value] : now) {
    const auto then = state.identity.find(key);
    if (then != state.identity.end() && then->second == value) continue;
    fail(str("--resume_from_checkpoint ", folder), str(key, " is ", value, " now"),
         str(then == state.identity.end() ? "nothing" : then->second, ", as in the run that wrote the checkpoint"),
         key == "micro_batches" ? "keep --batch_size, and ranks x --gradient_accumulation_steps, as they were"
                                : "resume with the settings of that run");
  }
}

void start_from_checkpoint(ModelRequest& r, const std::string& folder) {
  if (r.train_base) {
    r.weights = folder;
    r.init = "pretrained";
  } else {
    r.adapter = folder;
    r.new_adapter = false;
  }
}

void load_optimizer(const LoadedModel& m, Optimizer& optimizer, const std::string& folder) {
  const TensorFiles files = TensorFiles::open(folder + "/" + optimizer_name);
  for (int unit = 0; unit < m.sharded.units(); ++unit) {
    const Range mine = m.sharded.trainable_range(unit);
    for (const PartPlace& p : m.model.units[size_t(unit)].parts) {
      const Range own = p.trains ? intersect(p.element_range(), mine) : Range{};
      if (!own.size()) continue;
      const auto read = [&](const char* prefix, Tensor state) {
        const Tensor to{state.as<float>() + (own.begin - mine.begin), Dtype::f32, {int64_t(own.size())}, state.home};
        read_elements(to, files.get(prefix + p.name), int64_t(own.begin - p.begin), int64_t(own.size()));
      };
      read("exp_avg:", optimizer.exp_avg(unit));
      read("exp_avg_sq:", optimizer.exp_avg_sq(unit));
    }
  }
}

}  // namespace tessera
