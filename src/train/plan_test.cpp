// The law of the plan: what a run enters in its ledger is what the dry run entered, for every phase of every rank.
#include "train/plan.h"

#include <gtest/gtest.h>

#include <mutex>
#include <random>

#include "backend/cuda/fake_nvml_test.h"
#include "backend/cuda/make.h"
#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "testing/test_backend.h"
#include "testing/test_folder.h"
#include "train/checkpoint_writer.h"
#include "train/optimizer.h"
#include "train/output.h"
#include "train/train_test.h"

namespace tessera {
namespace {

struct Case {
  TrainConfig config;
  PlanMachine machine;
  Keeping keeping;
  std::string text() const {
    return str(config.train_type, " ", config.precision, " ", config.sharding_strategy, " ranks ", machine.ranks, " batch ",
               config.batch_size, " context ", config.context_length, " rank ", config.lora_rank, " keep ", keeping.layers,
               keeping.attention ? "+attention" : "", machine.own_memory ? " own memory" : "", " on ", machine.device,
               config.use_cpu_offload ? ", weights" : "", config.use_activation_cpu_offload ? ", inputs" : "",
               config.optimizer_offload ? ", optimizer" : "");
  }
};

void write_config(const TestFolder& folder) {
  write_file_atomic(
      folder / "config.json",
      R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
                        "num_key_value_heads": 2, "vocab_size": 128, "tie_word_embeddings": false, "rms_norm_eps": 1e-5})");
}

template <class T>
T one_of(std::mt19937_64& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

Case random_case(uint64_t seed, const std::string& model) {
  std::mt19937_64 random(seed);
  Case c;
  c.config.model = model;
  c.config.init = "random";
  c.config.train_type = one_of<const char*>(random, {"full", "lora", "qlora"});
  c.config.precision = one_of<const char*>(random, {"fp32", "bf16"});
  c.config.sharding_strategy = one_of<const char*>(random, {"full_shard", "shard_grad_op", "ddp"});
  c.config.double_quant = random() % 2;
  c.config.lora_rank = one_of<int64_t>(random, {1, 4, 16});
  c.config.lora_dropout = one_of<double>(random, {0.0, 0.1});
  c.config.batch_size = one_of<int64_t>(random, {1, 2, 3});
  c.config.context_length = one_of<int64_t>(random, {8, 33, 64});
  c.config.save_steps = one_of<int64_t>(random, {0, 1});
  c.config.eval_dataset = one_of<const char*>(random, {"", "rows"});
  c.machine.ranks = one_of<int>(random, {1, 2, 3, 4});
  c.machine.own_memory = random() % 2;
  c.keeping = {one_of<int64_t>(random, {0, 0, 1, 2, Keeping::all_layers}), random() % 2 == 0};
  return c;
}

Batch full_rows(const TrainConfig& c) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < c.context_length; ++i) ids.push_back(int32_t(i % 50));
  const Example row{ids, ids};
  return collate(std::vector<const Example*>(size_t(c.batch_size), &row));
}

void write_adapter_or_model(LoadedModel& m, Comm& comm) {
  const TestFolder folder;
  if (m.request.train_base) {
    write_tensors(masters_of(m), folder / "model.safetensors", {{"", masters_of(m).values}}, Dtype::f32, {});
  } else {
    write_adapter(masters_of(m), folder / "adapter", false);
  }
  comm.barrier();
}

struct Used {
  std::vector<Ledger::Peak> phases;
  size_t host_peak = 0;
};

Used run(const Case& c, Comm& comm, size_t arena_bytes) {
  const auto backend = make_test_backend(c.machine.device, 1);
  ModelRequest request = model_request(c.config);
  request.keeping = c.keeping;
  request.arena_bytes = arena_bytes;
  if (c.machine.own_memory && !c.machine.gpu()) request.frozen_place = FrozenPlace::gathered;
  LoadedModel m(request, comm, *backend);
  Optimizer optimizer(m.model, m.sharded, *backend, {});
  std::optional<Snapshot> snapshot;
  if (writes_beside(c.config)) snapshot.emplace(live_state(m, optimizer), m.sharded.units(), *backend);
  const Batch batch = full_rows(c.config);
  m.sharded.zero_gradients();
  m.pass.train(batch, 1e-3f);
  optimizer.step(1, 1e-3, optimizer.gradient_norm());
  backend->ledger().enter("save");
  if (!snapshot) write_adapter_or_model(m, comm);
  std::optional<Charge> writing;  // what the writer's thread holds at its own time
  if (snapshot) writing.emplace(backend->host_ledger(), "gathered for saving", gather_bytes(m, comm));
  m.pass.train(batch, 1e-3f);
  if (!c.config.eval_dataset.empty()) m.pass.evaluate(batch);
  return {backend->ledger().peaks(), backend->host_ledger().peak()};
}

void expect_same(const std::vector<Ledger::Peak>& used, const std::vector<Ledger::Peak>& planned, const std::string& what) {
  ASSERT_EQ(used.size(), planned.size()) << what;
  for (size_t i = 0; i < used.size(); ++i) {
    EXPECT_EQ(used[i].phase, planned[i].phase) << what;
    EXPECT_EQ(used[i].bytes, planned[i].bytes) << what << ", " << used[i].phase;
  }
}

class PlanLaw : public testing::Test {
 protected:
  PlanLaw() { write_config(folder_); }
  const TestFolder folder_;
};

TEST_F(PlanLaw, UsedIsPlannedOverAGrid) {
  constexpr uint64_t cases = 200;
  for (uint64_t seed = 0; seed < cases; ++seed) {
    const Case c = random_case(seed, folder_.path());
    std::mutex mutex;
    run_local_ranks(c.machine.ranks, [&](Comm& comm) {
      const auto used = run(c, comm, 0);
      const Plan plan = dry_run(c.config, c.machine, c.keeping, comm.rank());
      const std::lock_guard lock(mutex);
      expect_same(used.phases, plan.phases, str("seed ", seed, ": ", c.text(), ", rank ", comm.rank()));
    });
    if (HasFailure()) return;
  }
}

// The same of a device: its memory, and what is held for it on the host.
TEST_F(PlanLaw, UsedIsPlannedOnADevice) {
  for (uint64_t seed = 0; seed < 16; ++seed) {
    Case c = random_case(seed, folder_.path());
    c.machine.device = "cuda_host", c.machine.own_memory = true;
    c.machine.ranks = std::min(c.machine.ranks, 2), c.config.context_length = std::min<int64_t>(c.config.context_length, 33);
    c.config.gradient_accumulation_steps = 1 + int64_t(seed % 3);
    c.config.use_cpu_offload = seed % 2, c.config.use_activation_cpu_offload = seed / 2 % 2, c.config.optimizer_offload = seed / 4 % 2;
    std::mutex mutex;
    run_local_ranks(c.machine.ranks, [&](Comm& comm) {
      const Plan plan = dry_run(c.config, c.machine, c.keeping, comm.rank());
      const auto used = run(c, comm, plan.arena);
      const std::lock_guard lock(mutex);
      const std::string what = str("seed ", seed, ": ", c.text(), ", rank ", comm.rank());
      expect_same(used.phases, plan.phases, what);
      EXPECT_EQ(used.host_peak, plan.host_peak) << what;
    });
    if (HasFailure()) return;
  }
}

// What two cards of 24 GB are for. The arithmetic is the shapes' alone.
TEST(Plan, SeventyBillionOnTwoCards) {
  struct Row {
    int64_t vocab;
    bool optimizer_offload;
  };
  for (const Row& row : {Row{32000, false}, Row{128256, true}}) {  // Llama 2, Llama 3.1
    const TestFolder folder;
    write_file_atomic(folder / "config.json",
                      str(R"({"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                              "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": false, "vocab_size": )",
                          row.vocab, "}"));
    TrainConfig c;
    c.model = folder.path();
    c.train_type = "qlora", c.precision = "bf16", c.context_length = 2048, c.batch_size = 2;
    PlanMachine machine;
    machine.ranks = 2, machine.device = "cuda", machine.own_memory = true, machine.rank_memory = size_t(24) << 30;
    EXPECT_FALSE(dry_run(c, machine, {0, false}, 0).fits());
    c.use_cpu_offload = true, c.optimizer_offload = row.optimizer_offload;
    const Plan plan = make_plan(c, machine);
    EXPECT_TRUE(plan.fits());
    const Plan least = dry_run(c, machine, {0, false}, 0);
    EXPECT_LE(double(least.needed()), 12e9);
    EXPECT_LE(double(least.host_needed()), 45e9);
    machine.host_memory = least.host_needed() - 1;
    EXPECT_FALSE(dry_run(c, machine, {0, false}, 0).fits());
    machine.host_memory = 0, c.use_cpu_offload = false;
    const auto advice = plan_advice(c, machine);
    EXPECT_TRUE(std::any_of(advice.begin(), advice.end(), [](const auto& a) { return starts_with(a, "--use_cpu_offload true: "); }));
  }
}

TEST_F(PlanLaw, KeepsWhatThereIsRoomFor) {
  Case c = random_case(1, folder_.path());
  c.config.train_type = "qlora", c.config.context_length = 512, c.config.batch_size = 8, c.config.gradient_checkpointing = "auto";
  c.machine = {};
  const size_t least = dry_run(c.config, c.machine, {0, false}, 0).needed(),
               most = dry_run(c.config, c.machine, {Keeping::all_layers, true}, 0).needed();
  ASSERT_LT(least, most);
  c.machine.rank_memory = most / 4 * 5 + 8;
  EXPECT_EQ(make_plan(c.config, c.machine).keeping.layers, 2);
  c.machine.rank_memory = least / 4 * 5 + 8;
  const Plan tight = make_plan(c.config, c.machine);
  EXPECT_LT(tight.keeping.layers, 2);
  EXPECT_TRUE(tight.fits());
  c.config.gradient_checkpointing = "true";
  EXPECT_EQ(make_plan(c.config, c.machine).keeping.layers, 0);
  c.config.keep_layers = "1";
  EXPECT_EQ(make_plan(c.config, c.machine).keeping.layers, 1);
}

TEST_F(PlanLaw, WhatDoesNotFitIsRefusedWithWhatWould) {
  Case c = random_case(2, folder_.path());
  c.config.train_type = "full", c.config.precision = "fp32", c.config.context_length = 1024, c.config.batch_size = 16;
  c.config.gradient_checkpointing = "false", c.machine = {};
  c.machine.rank_memory = plan_constant + (size_t(8) << 20);
  const Plan plan = make_plan(c.config, c.machine);
  ASSERT_FALSE(plan.fits());
  try {
    refuse_unfitting(c.config, plan);
    FAIL() << "nothing was refused";
  } catch (const Error& e) {
    const std::string text = e.what();
    for (const char* part : {"the memory plan: ", "at most, in ", "--gradient_checkpointing true", "--force"})
      EXPECT_NE(text.find(part), text.npos) << part << " in\n" << text;
  }
  const int64_t context = largest_context(c.config, c.machine);
  c.config.context_length = context + 64;
  EXPECT_GT(dry_run(c.config, c.machine, {Keeping::all_layers, false}, 0).needed(), c.machine.rank_memory);
  if (context > 0) {
    c.config.context_length = context;
    EXPECT_LE(dry_run(c.config, c.machine, {Keeping::all_layers, false}, 0).needed(), c.machine.rank_memory);
  }
}

constexpr size_t MiB = size_t(1) << 20;

// A GPU that is here: what its context holds is planned in steps of 16 MiB, and is not taken off what there is a second time.
TEST(Plan, CountsWhatWasMeasuredOfAGpu) {
  FakeNvml nvml;
  const auto library = FakeNvml::library();
  const auto backend = cuda_host::make_cuda_backend(0, 1, 1, &library);
  const auto comm = make_single_comm();
  nvml.used = 500 * MiB + 1;
  PlanMachine machine = this_machine(*comm, *backend);
  EXPECT_EQ(machine.gpu_overhead, 512 * MiB);
  EXPECT_EQ(machine.rank_memory, backend->free_memory() + nvml.used);
  nvml.processes = 2;
  EXPECT_EQ(this_machine(*comm, *backend).gpu_overhead, 0u);
  EXPECT_EQ(this_machine(*comm, *backend).rank_memory, backend->free_memory());

  Plan plan;
  plan.machine = machine, plan.peak = 1000 * MiB;
  EXPECT_EQ(plan.gpu_constant(), 512 * MiB + plan_gpu_loaded_later);
  EXPECT_EQ(plan.needed(), 1512 * MiB + plan_gpu_loaded_later + plan_gpu_odd_batches);
  plan.machine.ranks = 2;  // NCCL comes later
  EXPECT_EQ(plan.gpu_constant(), plan_gpu_constant);
  plan.machine.gpu_overhead = 800 * MiB;
  EXPECT_EQ(plan.gpu_constant(), 800 * MiB + plan_gpu_loaded_later);
  plan.machine.gpu_overhead = 0;
  EXPECT_EQ(plan.gpu_constant(), plan_gpu_constant);
}

// Ranks plan alike: with the most that one of them holds, and with the estimate when one of them does not know.
TEST(Plan, RanksCountTheSameConstant) {
  FakeNvml nvml;
  const auto library = FakeNvml::library();
  run_local_ranks(2, [&](Comm& comm) {
    const auto backend = cuda_host::make_cuda_backend(0, 1, 1, &library);
    FakeNvml::more() = size_t(comm.rank() + 1) * 100 * MiB;
    const PlanMachine machine = this_machine(comm, *backend);
    EXPECT_EQ(machine.gpu_overhead, 208 * MiB);
    EXPECT_EQ(machine.rank_memory, backend->free_memory() + 100 * MiB);
    FakeNvml::more() = size_t(comm.rank()) * 100 * MiB;
    EXPECT_EQ(this_machine(comm, *backend).gpu_overhead, 0u);
  });
}

// A run says when its GPU holds more than was planned, and its plan.json tells.
TEST_F(PlanLaw, TheConstantIsHeldAfterSetUp) {
  FakeNvml nvml;
  const auto library = FakeNvml::library();
  const auto backend = cuda_host::make_cuda_backend(0, 1, 1, &library);
  const auto comm = make_single_comm();
  nvml.used = 480 * MiB;
  Case c = random_case(3, folder_.path());
  Plan plan = dry_run(c.config, this_machine(*comm, *backend), {0, false}, 0);
  for (const size_t later : {plan_gpu_loaded_later, plan_gpu_loaded_later + MiB}) {
    nvml.used = 480 * MiB + later;
    testing::internal::CaptureStderr();
    hold_to_constant(plan, *comm, *backend);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.empty(), later == plan_gpu_loaded_later) << said;
    EXPECT_TRUE(said.empty() || said.find("hold 513 MiB, 512 MiB were planned") != said.npos) << said;
    EXPECT_EQ(plan.gpu_constant_found, nvml.used);
  }
  const std::string json = plan_json(c.config, plan);
  for (const char* part :
       {"\"gpu_constant_bytes\": 536870912", "\"gpu_constant_measured\": true", "\"gpu_constant_found_bytes\": 537919488"})
    EXPECT_NE(json.find(part), json.npos) << part;
}

TEST(Plan, NeedsNothingButTheConfig) {
  const TestFolder folder;
  write_config(folder);
  TrainConfig c;
  c.model = folder.path();
  PlanMachine machine;
  machine.ranks = 2, machine.own_memory = true;
  const Plan plan = dry_run(c, machine, {0, false}, 1);
  EXPECT_GT(plan.flops, 0);
  EXPECT_GT(plan.gathered, 0);
  EXPECT_GT(plan.reduced, 0);
  EXPECT_GT(plan.parameters, 0);
}

}  // namespace
}  // namespace tessera
