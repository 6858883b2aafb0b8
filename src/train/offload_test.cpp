// What waits on the host changes memory and time, never a bit of the result.
#include "train/optimizer.h"
#include "train/tiny_runs.h"

namespace tessera {
namespace {

class Offload : public TinyRuns, public testing::WithParamInterface<const char*> {
 protected:
  Offload() {  // a head of its own, so that the embedding may stay on the host; layers enough for both buffers to be used again
    std::string json = read_file(folder_.path("model/config.json"));
    const auto change = [&](const std::string& from, const std::string& to) { json.replace(json.find(from), from.size(), to); };
    change("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    change("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 5");
    write_file_atomic(folder_.path("model/config.json"), json);
  }
  TrainConfig run_of(const std::string& train_type, const std::string& output) const {
    TrainConfig c = config(train_type, output);
    c.device = GetParam();
    c.max_steps = 2;
    c.gradient_accumulation_steps = 2;
    c.gradient_checkpointing = "true", c.keep_layers = "0";
    return c;
  }
  struct Case {
    const char* name;
    int ranks;
    bool weights, inputs, optimizer;
    const char* keep_layers;
    const char* strategy = "full_shard";
  };
  void run_case(const Case& k, const std::string& train_type, uint64_t seed) {
    TrainConfig c = run_of(train_type, train_type + k.name);
    c.use_cpu_offload = k.weights, c.use_activation_cpu_offload = k.inputs, c.optimizer_offload = k.optimizer;
    c.keep_layers = k.keep_layers, c.sharding_strategy = k.strategy;
    run_on(k.ranks, c, seed);
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, Offload, testing::ValuesIn(f32_devices()), [](const auto& info) { return std::string(info.param); });

TEST_P(Offload, OfWeightsAndInputsChangesNoBit) {
  const Case cases[] = {{"weights", 1, true, false, false, "0"},     {"inputs", 1, false, true, false, "0"},
                        {"some_inputs", 1, false, true, false, "2"}, {"few_inputs", 1, true, true, false, "4"},
                        {"both", 2, true, true, false, "0"},         {"kept", 2, true, true, false, "1", "shard_grad_op"}};
  run_on(1, run_of("qlora", "qlora"));
  uint64_t seed = 7;
  for (const Case& k : cases) {
    run_case(k, "qlora", ++seed);
    EXPECT_EQ(outcome(std::string("qlora") + k.name, file_of("qlora")), outcome("qlora", file_of("qlora"))) << k.name;
  }
}

// The optimizer of the host on numbers that come from and go back to the device: the same on any number of ranks.
TEST_P(Offload, OfTheOptimizerIsTheSameOnAllRanks) {
  for (const std::string type : {"lora", "full"}) {
    run_case({"one", 1, false, false, true, "0"}, type, 3);
    run_case({"two", 2, false, false, true, "0"}, type, 4);
    run_case({"all", 2, true, true, true, "0", "ddp"}, type, 5);
    for (const char* other : {"two", "all"})
      EXPECT_EQ(outcome(type + other, file_of(type)), outcome(type + "one", file_of(type))) << type << ", " << other;
  }
}

// From the same gradients come the masters, states and compute copies of a run on the host.
TEST_P(Offload, OfTheOptimizerGivesTheBitsOfTheHost) {
  for (const char* precision : {"fp32", "bf16"}) {
    TrainConfig c = config("lora", "");
    c.precision = precision;
    c.optimizer_offload = true;
    TestModel here(model_request(c)), there(model_request(c), GetParam());
    const auto options = OptimizerOptions{.weight_decay = 0.1};
    Optimizer on_host(here.model.model, here.model.sharded, *here.backend, options),
        offloaded(there.model.model, there.model.sharded, *there.backend, options);
    for (int step = 1; step <= 2; ++step) {
      for (int u = 0; u < here.model.sharded.units(); ++u) {
        const Tensor from = here.model.sharded.gradients(u), to = there.model.sharded.gradients(u);
        std::vector<float> gradient;
        for (int64_t i = 0; i < from.size(); ++i) gradient.push_back(float((i * 37 + u * 11 + step) % 101) - 50);
        here.backend->copy(from.data, gradient.data(), from.bytes());
        there.backend->copy(to.data, gradient.data(), to.bytes());
      }
      on_host.step(step, 1e-2, 3);
      offloaded.step(step, 1e-2, 3);
    }
    for (int u = 0; u < here.model.sharded.units(); ++u) {
      EXPECT_EQ(to_doubles(there.model.sharded.values(u)), to_doubles(here.model.sharded.values(u))) << precision << ", unit " << u;
      EXPECT_EQ(to_doubles(offloaded.exp_avg_sq(u)), to_doubles(on_host.exp_avg_sq(u))) << precision << ", unit " << u;
      const Tensor copies = there.model.sharded.copies(u), rounded = here.model.sharded.copies(u);
      if (copies.empty()) continue;  // the values themselves
      EXPECT_EQ(to_doubles(copies), to_doubles(rounded.empty() ? here.model.sharded.values(u) : rounded)) << precision << ", unit " << u;
    }
  }
}

}  // namespace
}  // namespace tessera
