#include "train/checkpoint_facts.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"
#include "data/tokenizer.h"

namespace tessera {
namespace {

constexpr size_t mib = size_t(1) << 20;

bool is_base_file(const std::string& name, const TrainConfig& c, const std::vector<std::string>& tokenizer) {
  if (name == "config.json" || std::find(tokenizer.begin(), tokenizer.end(), name) != tokenizer.end()) return true;
  return c.init != "random" && (ends_with(name, ".safetensors") || ends_with(name, ".safetensors.index.json"));
}

[[noreturn]] void changed(const std::string& file, const std::string& how, const std::string& folder) {
  fail(file, how, str("the file that ", folder, " was trained with"), "restore it, or start a new run in another --output_dir");
}

void check_base(const CheckpointManifest& then, const CheckpointManifest& now, const std::string& folder) {
  for (const auto& [name, facts] : then.base_files)
    if (!now.base_files.contains(name)) changed(now.model + "/" + name, "is no longer there", folder);
  for (const auto& [name, facts] : now.base_files) {
    const auto before = then.base_files.find(name);
    if (before == then.base_files.end()) changed(now.model + "/" + name, "was not there", folder);
    if (before->second != facts) changed(now.model + "/" + name, "has changed", folder);
  }
}

void check_data(const CheckpointManifest& then, const CheckpointManifest& now, const std::string& folder) {
  for (const auto& [path, facts] : now.data_files) {
    const auto same = [&](const auto& entry) { return entry.second == facts; };
    if (std::any_of(then.data_files.begin(), then.data_files.end(), same)) continue;
    changed(path, then.data_files.contains(path) ? "has changed" : "is no file of that run", folder);
  }
}

}  // namespace

std::map<std::string, std::string> run_identity(const TrainConfig& c, const RunShape& shape, const Dataset& data) {
  return {{"train_type", c.train_type},
          {"init", c.init},
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

std::string sampled_sha256(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = [&](size_t begin, size_t count) {
    const size_t end = std::min(begin + count, file.size());
    return std::span(file.data() + begin, begin < end ? end - begin : 0);
  };
  Sha256 hash;
  const uint64_t size = file.size();
  hash.update(std::as_bytes(std::span(&size, 1)));
  if (size <= 2 * mib) {
    hash.update(bytes(0, size));
    return hash.hex();
  }
  hash.update(bytes(0, mib));
  hash.update(bytes(size - mib, mib));
  for (size_t at = 16 * mib; at < size; at += 16 * mib) hash.update(bytes(at, 64 << 10));
  return hash.hex();
}

FileFactsByName base_files(const TrainConfig& c) {
  const std::vector<std::string> tokenizer = Tokenizer::present(c.model) ? Tokenizer::load(c.model).files() : std::vector<std::string>();
  FileFactsByName out;
  for (const std::string& name : list_folder(c.model)) {
    const std::string path = c.model + "/" + name;
    if (file_exists(path) && is_base_file(name, c, tokenizer)) out[name] = {MappedFile(path).size(), sampled_sha256(path)};
  }
  return out;
}

FileFactsByName data_files(const Dataset& data, const Dataset* eval) {
  FileFactsByName out;
  for (const Dataset* d : {&data, eval})
    if (d && !d->path().empty()) out[d->path()] = {MappedFile(d->path()).size(), sha256_file(d->path())};
  return out;
}

std::string epoch_order_sha256(const TrainConfig& c, int64_t rows, int64_t epoch) {
  std::vector<int64_t> order(size_t(rows), 0);
  if (c.shuffle) {
    order = shuffled(rows, c.seed, uint64_t(epoch));
  } else {
    std::iota(order.begin(), order.end(), int64_t(0));
  }
  return sha256_hex(std::as_bytes(std::span(order)));
}

void check_same_run(const CheckpointManifest& then, const CheckpointManifest& now, const std::string& folder) {
  for (const auto& [key, value] : now.run) {
    const auto before = then.run.find(key);
    if (before != then.run.end() && before->second == value) continue;
    fail(str("--resume_from_checkpoint ", folder), str(key, " is ", value, " now"),
         str(before == then.run.end() ? "nothing" : before->second, ", as in the run that wrote the checkpoint"),
         key == "micro_batches" ? "keep --batch_size and --gradient_accumulation_steps as they were"
                                : "resume with the settings of that run");
  }
  check_base(then, now, folder);
  check_data(then, now, folder);
  if (then.epoch_order_sha256 != now.epoch_order_sha256)
    fail(str("--resume_from_checkpoint ", folder), "the rows of its epoch came in another order", str("the order of ", then.program),
         "resume with that version of the program");
}

}  // namespace tessera
