// The laws of a run: 1 rank = N ranks to the bit, resume = no interruption, frozen bytes unchanged, dropout keyed by the sample.
#include <cstring>
#include <tuple>

#include "core/error.h"
#include "train/tiny_runs.h"

namespace tessera {
namespace {

class Laws : public TinyRuns {};

class RankLaw : public Laws, public testing::WithParamInterface<std::tuple<const char*, const char*>> {};

// 12 micro-batches a step, on 1 rank one after the other or on 2, 3, 4 ranks side by side; the last window of an epoch is short.
TEST_P(RankLaw, AnyNumberOfRanksGivesTheSameBits) {
  const auto& [train_type, strategy] = GetParam();
  TrainConfig c = config(train_type, "one");
  c.sharding_strategy = strategy;
  run_on(1, c);
  const std::string one = outcome("one", file_of(train_type));
  for (const int ranks : {2, 3, 4}) {
    c.output_dir = folder_.path("many" + std::to_string(ranks));
    run_on(ranks, c);
    EXPECT_EQ(outcome("many" + std::to_string(ranks), file_of(train_type)), one) << ranks << " ranks";
  }
}

INSTANTIATE_TEST_SUITE_P(TrainTypes, RankLaw,
                         testing::Combine(testing::Values("lora", "qlora", "full"), testing::Values("full_shard", "shard_grad_op", "ddp")),
                         [](const auto& info) { return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param); });

TEST_F(Laws, ThreadsDoNotChangeBits) {
  for (const int threads : {1, 2, 3}) {
    TrainConfig c = config("qlora", "threads" + std::to_string(threads));
    c.threads = threads;
    run_on(1, c);
    EXPECT_EQ(outcome("threads" + std::to_string(threads), file_of("qlora")), outcome("threads1", file_of("qlora")));
  }
}

TEST_F(Laws, RecomputeDoesNotChangeBits) {
  for (const char* way : {"true", "false", "auto"}) {
    TrainConfig c = config("qlora", way);
    c.gradient_checkpointing = way;
    run_on(1, c);
    EXPECT_EQ(outcome(way, file_of("qlora")), outcome("true", file_of("qlora")));
  }
}

class ResumeLaw : public Laws, public testing::WithParamInterface<const char*> {};

// Stopped after step 2 and resumed, on the same and on another number of ranks.
TEST_P(ResumeLaw, ResumedEqualsUninterrupted) {
  const std::string type = GetParam();
  TrainConfig c = config(type, "whole");
  run_on(1, c);
  for (const int ranks : {1, 3}) {
    const std::string output = "resumed" + std::to_string(ranks);
    c = config(type, output);
    c.save_steps = 2;
    run_on(2, c);
    remove_all(folder_.path(output) + "/checkpoint-4");
    remove_all(folder_.path(output) + "/" + file_of(type));
    c.resume_from_checkpoint = "true";
    run_on(ranks, c);
    EXPECT_EQ(outcome(output, file_of(type)), outcome("whole", file_of(type))) << ranks << " ranks";
  }
}
INSTANTIATE_TEST_SUITE_P(TrainTypes, ResumeLaw, testing::Values("lora", "qlora", "full"));

TEST_F(Laws, ResumeRefusesAnotherRun) {
  TrainConfig c = config("lora", "other");
  c.save_steps = 2;
  run_on(1, c);
  c.resume_from_checkpoint = "true";
  c.lr = 1e-3;
  try {
    run_on(1, c);
    FAIL() << "resumed";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("lr is 0.001 now"), std::string::npos) << e.what();
  }
}

TEST_F(Laws, DamagedCheckpointIsNamed) {
  TrainConfig c = config("lora", "damaged");
  c.save_steps = 2;
  run_on(1, c);
  const std::string path = folder_.path("damaged") + "/checkpoint-4/optimizer.safetensors";
  std::string bytes = read_file(path);
  bytes.back() = char(bytes.back() ^ 1);
  write_file_atomic(path, bytes);
  c.resume_from_checkpoint = "true";
  try {
    run_on(1, c);
    FAIL() << "resumed";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("checkpoint-4/optimizer.safetensors"), std::string::npos) << e.what();
  }
}

// Checkpoints that are not this run's: a fresh run refuses the folder, a resumed one removes what lies beyond it.
TEST_F(Laws, CheckpointsOfAnotherRunAreNotMixedIn) {
  TrainConfig c = config("lora", "mixed");
  c.save_steps = 1;
  run_on(1, c);
  const std::string refused = error_of([&] { run_on(1, c); });
  EXPECT_NE(refused.find("checkpoint-1 of an earlier run"), std::string::npos) << refused;
  c.resume_from_checkpoint = folder_.path("mixed") + "/checkpoint-2";
  c.save_steps = 0;
  run_on(1, c);
  EXPECT_TRUE(folder_exists(folder_.path("mixed") + "/checkpoint-2"));
  EXPECT_FALSE(folder_exists(folder_.path("mixed") + "/checkpoint-3"));
}

TEST_F(Laws, ResumeRefusesAnotherModel) {
  TrainConfig c = config("lora", "model_changed");
  c.save_steps = 2;
  run_on(1, c);
  const std::string path = folder_.path("model/config.json");
  write_file_atomic(path, read_file(path) + " ");
  c.resume_from_checkpoint = "true";
  const std::string refused = error_of([&] { run_on(1, c); });
  EXPECT_NE(refused.find("model/config.json: has changed"), std::string::npos) << refused;
}

TEST_F(Laws, OutputFolderIsNotTheModel) {
  TrainConfig c = config("full", "unused");
  c.output_dir = folder_.path("model/");
  const std::string refused = error_of([&] { run_on(1, c); });
  EXPECT_NE(refused.find("is a folder this run reads"), std::string::npos) << refused;
}

// An adapter that is trained further keeps its rank and targets, and takes this run's dropout.
TEST_F(Laws, AdapterInitBringsItsOwnShape) {
  run_on(1, config("lora", "first"));
  TrainConfig c = config("lora", "second");
  c.adapter_init = folder_.path("first");
  c.lora_rank = 7, c.lora_dropout = 0.4;
  const ModelRequest r = model_request(c);
  TestModel m(r);
  EXPECT_EQ(m.model.peft.rank, 3);
  EXPECT_EQ(m.model.model.layers[0].q.adapter->dropout, 0.4f);
  run_on(1, c);
  EXPECT_NE(sha256_file(folder_.path("second") + "/adapter_model.safetensors"),
            sha256_file(folder_.path("first") + "/adapter_model.safetensors"));
}

TEST_F(Laws, OldCheckpointsAreDeletedAfterTheNewOne) {
  TrainConfig c = config("lora", "limit");
  c.save_steps = 1, c.save_total_limit = 2;
  run_on(1, c);
  std::vector<std::string> left;
  for (const std::string& name : list_folder(folder_.path("limit")))
    if (name.rfind("checkpoint-", 0) == 0) left.push_back(name);
  EXPECT_EQ(left, (std::vector<std::string>{"checkpoint-3", "checkpoint-4"}));
}

// Nothing is read before it is written: memory full of NaN gives the same bits as memory full of zeros.
TEST_F(Laws, PoisonedMemoryDoesNotChangeBits) {
  for (const char* type : {"qlora", "full"})
    for (const Dtype compute : {Dtype::f32, Dtype::bf16}) {
      std::vector<std::map<std::string, std::vector<double>>> gradients;
      for (const int fill : {0x00, 0xff}) {
        ModelRequest r = model_request(config(type, "unused"));
        r.compute = compute;
        TestModel m(r);
        {
          const ArenaScope scope(m.model.arena);
          const Tensor memory = m.model.arena.take(Dtype::u8, {int64_t(8) << 20}, "poison");
          std::memset(memory.data, fill, memory.bytes());
        }
        Example row;
        for (int i = 0; i < 13; ++i) row.ids.push_back(1 + i * 4);
        row.labels = row.ids;
        row.labels[3] = -100;
        Example shorter = row;
        shorter.ids.resize(7), shorter.labels.resize(7);
        m.model.pass.train(collate({&row, &shorter}), 1.f / 16);
        gradients.push_back(m.gradients());
      }
      EXPECT_EQ(gradients[0], gradients[1]) << type;
    }
}

// A micro-batch's gradient does not change a frozen byte, and every adapter tensor gets one.
TEST_F(Laws, FrozenBytesStay) {
  for (const bool quantized : {false, true}) {
    ModelRequest r = model_request(config(quantized ? "qlora" : "lora", "unused"));
    TestModel m(r);
    std::vector<std::string> before;
    const auto hashes = [&] {
      std::vector<std::string> out;
      for (int u = 0; u < m.model.sharded.units(); ++u)
        out.push_back(sha256_hex({m.model.sharded.frozen_shard(u), m.model.sharded.frozen_range(u).size()}));
      return out;
    };
    before = hashes();
    Example row;
    for (int i = 0; i < 12; ++i) row.ids.push_back(1 + i * 5);
    row.labels = row.ids;
    m.model.pass.train(collate({&row}), 1.f / 11);
    EXPECT_EQ(hashes(), before);
    for (const auto& [name, gradient] : m.gradients()) {
      double sum = 0;
      for (const double g : gradient) sum += g * g;
      EXPECT_GT(sum, 0) << name;
    }
  }
}

}  // namespace
}  // namespace tessera
