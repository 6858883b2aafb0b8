// Runs of a tiny model whose results are compared to the bit. For *_test.cpp only.
#pragma once
#include <sstream>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "testing/test_backend.h"
#include "train/checkpoint.h"
#include "train/loop.h"
#include "train/train_test.h"

namespace tessera {

// A tiny model folder and data file of our own: no ../shared needed.
class TinyRuns : public testing::Test {
 protected:
  TinyRuns() {
    make_folder(folder_.path("model"));
    write_file_atomic(
        folder_.path("model/config.json"),
        R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "initializer_range": 0.1})");
    std::string rows;
    for (int i = 0; i < 23; ++i) {
      rows += "{\"input_ids\": [1";
      for (int t = 0; t < 5 + (i * 7) % 11; ++t) rows += ", " + std::to_string(2 + (i * 5 + t * 3) % 60);
      rows += "]}\n";
    }
    write_file_atomic(folder_.path("rows.jsonl"), rows);
  }

  TrainConfig config(const std::string& train_type, const std::string& output) const {
    TrainConfig c;
    c.model = folder_.path("model");
    c.dataset = folder_.path("rows.jsonl");
    c.init = "random";
    c.train_type = train_type;
    c.precision = "fp32";
    c.lora_rank = 3, c.lora_alpha = 6, c.lora_dropout = 0.1;
    c.init_lora_weights = "false";
    c.batch_size = 2;
    c.gradient_accumulation_steps = 12;
    c.max_steps = 4;
    c.lr = 1e-2;
    c.threads = 1;
    c.logging_steps = 100;
    c.output_dir = folder_.path(output);
    return c;
  }

  // What a run leaves that must not depend on how it was run: weights, and the log without times and memory.
  std::string outcome(const std::string& output, const std::string& file) const {
    std::string text = sha256_file(folder_.path(output) + "/" + file) + "\n";
    std::istringstream lines(read_file(folder_.path(output) + "/train.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      GoldenJson step = GoldenJson::parse(line);
      if (step.contains("save_stall_seconds")) continue;
      for (const char* key : {"seconds", "tokens_per_second", "memory", "memory_peak"}) step.erase(key);
      text += step.dump() + "\n";
    }
    return text;
  }

  // Also on the devices of tests, a GPU for each rank; seed: of the order in which their lanes run.
  void run_on(int ranks, TrainConfig c, uint64_t seed = 1) const {
    c.gradient_accumulation_steps /= ranks;
    run_local_ranks(ranks, [&](Comm& comm) {
      const auto make = [&](std::string_view device, int threads) {
        return make_test_backend(device == "cuda" ? str("cuda:", comm.rank()) : std::string(device), threads, seed);
      };
      train(c, comm, {}, {}, make);
    });
  }

  const TestFolder folder_;
};

inline const char* file_of(const std::string& train_type) {
  return train_type == "full" ? "model.safetensors" : "adapter_model.safetensors";
}

}  // namespace tessera
