#include "targets.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cli/config.h"
#include "core/error.h"
#include "core/text.h"
#include "data/dataset.h"
#include "input_folder.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/torch_checkpoint.h"
#include "models/config.h"
#include "models/model.h"
#include "models/peft.h"
#include "train/checkpoint_files.h"

namespace tessera {
namespace {

void check_text(const std::string& text) {
  const bool four_parts = text.find("\n  allowed: ") != text.npos && text.find("\n  do this: ") != text.npos;
  if (four_parts && text.size() < 20000) return;
  std::fprintf(stderr, "an Error without four parts, or too long (%zu bytes): %.500s\n", text.size(), text.c_str());
  std::abort();
}

// For inputs whose readers are several: an Error of one does not keep the others from being tried.
template <class F>
void attempt(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    check_text(e.what());
  }
}

// The first and the last elements of every tensor, and whatever its header says.
void touch_tensors(const TensorFiles& files) {
  for (const auto& entry : files.all()) {
    const StoredTensor& tensor = entry.second;
    const int64_t size = tensor.size(), count = std::min<int64_t>(size, 4);
    float values[4];
    for (const int64_t begin : {int64_t(0), size - count})
      attempt([&] { read_elements({values, Dtype::f32, {count}, nullptr}, tensor, begin, count); });
    tensor.view(0, count, nullptr);
    tensor.forget(0, size);
    if (tensor.shape_text().empty() || tensor.where().empty()) std::abort();
  }
  attempt([&] { files.get("model.layers.0.self_attn.q_proj.weight"); });
}

void read_safetensors(std::string_view input) {
  static const InputFolder folder("safetensors");
  const std::string path = folder.write("one.safetensors", input);
  touch_tensors(TensorFiles::open(path));
}

void read_sharded_index(std::string_view input) {
  static const InputFolder folder("sharded_index");
  folder.write_parts(input, {"model.safetensors.index.json", "a.safetensors", "b.safetensors"});
  touch_tensors(TensorFiles::open(folder.path()));
}

void read_config(std::string_view input) {
  static const InputFolder folder("model_config");
  folder.write_parts(input, {"config.json", "generation_config.json"});
  const ModelConfig config = read_model_config(folder.path());
  if (config.parameters() <= 0 || linear_modules(config).empty()) std::abort();
  rope_tables(config, 16);
}

// The words of training data: white space, digits, several scripts, a special token, bytes that are no UTF-8.
constexpr std::string_view sample =
    "  Hello world, 1234 and   more!\n\n\t\xC3\xA9t\xC3\xA9 \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x99\x82<s></s> aaaa \xFF";

void use_tokenizer(const std::string& path) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  const std::vector<int32_t> ids = tokenizer.encode(sample, true);
  for (const int32_t id : ids)
    if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
  tokenizer.decode(ids, true);
  tokenizer.decode({0, 1, 2, 3, tokenizer.vocab_size() - 1, tokenizer.vocab_size(), -1}, false);
  TokenStream stream(tokenizer, false);
  for (const int32_t id : ids) stream.next(id);
  stream.rest();
  tokenizer.piece(tokenizer.bos());
  tokenizer.describe();
}

void read_tokenizer_json(std::string_view input) {
  static const InputFolder folder("tokenizer_json");
  folder.write_parts(input, {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"});
  use_tokenizer(folder.path());
}

void read_tokenizer_model(std::string_view input) {
  static const InputFolder folder("tokenizer_model");
  folder.write_parts(input, {"tokenizer.model", "tokenizer_config.json", "added_tokens.json"});
  use_tokenizer(folder.path());
}

// Every kind of row; texts are tokenized by a file that is beyond suspicion.
void read_rows(std::string_view input) {
  static const InputFolder folder("rows");
  static const Tokenizer tokenizer = [] {
    const std::string path = folder.write("plain.json", R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "?": 3},
      "merges": ["a b"], "unk_token": "?"}, "added_tokens": [{"id": 4, "content": "</s>", "special": true}]})");
    folder.write("tokenizer_config.json", R"({"eos_token": "</s>"})");
    return Tokenizer::load(path);
  }();
  DatasetOptions options;
  options.dataset = folder.write("rows.jsonl", input);
  options.context_length = 16;
  for (const char* dialect : {"tessera", "fsdp_qlora"}) {
    options.dialect = dialect;
    attempt([&] { Dataset::load(options, &tokenizer, tokenizer.vocab_size()); });
  }
  attempt([&] { inspect_rows(options, &tokenizer, tokenizer.vocab_size(), 3); });
}

void read_config_yaml(std::string_view input) {
  static const InputFolder folder("config_file");
  const TrainArguments read = parse_train({"--config", folder.write("run.yaml", input)});
  const std::string again = folder.write("again.yaml", to_yaml(read.config));
  if (parse_train({"--config", again}).config != read.config) std::abort();
}

void read_checkpoint(std::string_view input) {
  const CheckpointManifest manifest = parse_checkpoint_manifest(std::string(input), "checkpoint.json");
  if (parse_checkpoint_manifest(checkpoint_manifest_text(manifest), "again") != manifest) std::abort();
}

// A file of torch.save, a folder's metadata, a file of that folder.
void read_torch_checkpoint(std::string_view input) {
  static const InputFolder folder("torch_checkpoint");
  folder.write_parts(input, {"model.pt", ".metadata", "__0_0.distcp"});
  for (const std::string& path : {folder.path("model.pt"), folder.path()})
    attempt([&] {
      if (!TorchCheckpoint::present(path)) return;
      TorchCheckpoint checkpoint = TorchCheckpoint::open(path);
      for (const TorchTensor& tensor : checkpoint.tensors()) {
        size_t bytes = size_of(tensor.dtype);
        for (const int64_t size : tensor.shape) bytes *= size_t(size);
        std::vector<std::byte> values(bytes);
        checkpoint.read(tensor, values);
      }
    });
}

void read_adapter(std::string_view input) {
  static const InputFolder folder("adapter");
  static const std::vector<std::string> modules = [] {
    ModelConfig c;
    c.layers = 2;
    return linear_modules(c);
  }();
  folder.write_parts(input, {"adapter_config.json", "adapter_model.safetensors"});
  attempt([&] { touch_tensors(open_peft_tensors(folder.path())); });
  const PeftConfig config = read_peft_config(folder.path());
  attempt([&] { targeted_modules(config, modules); });
  folder.write("adapter_config.json", peft_config_text(config));
  read_peft_config(folder.path());
}

constexpr FuzzTarget targets[] = {
    {"safetensors", read_safetensors},           {"sharded_index", read_sharded_index},     {"model_config", read_config},
    {"tokenizer_json", read_tokenizer_json},     {"tokenizer_model", read_tokenizer_model}, {"rows", read_rows},
    {"config_file", read_config_yaml},           {"checkpoint", read_checkpoint},           {"adapter", read_adapter},
    {"torch_checkpoint", read_torch_checkpoint},
};

}  // namespace

std::span<const FuzzTarget> fuzz_targets() { return targets; }

void run_fuzz_target(const FuzzTarget& target, std::string_view input) {
  attempt([&] { target.read(input); });
}

}  // namespace tessera
