// The laws of checkpoints: whatever wrote them and whatever resumes them, the run ends as if it had never stopped.
#include <filesystem>
#include <thread>
#include <tuple>

#include "train/checkpoint_facts.h"
#include "train/tiny_runs.h"

namespace tessera {
namespace {

constexpr const char* strategies[] = {"full_shard", "shard_grad_op", "ddp"};

class CheckpointLaws : public TinyRuns {
 protected:
  // As it is, without a share of the accumulation for each rank.
  void run_with(int ranks, const TrainConfig& c) const {
    run_local_ranks(ranks, [&](Comm& comm) { train(c, comm); });
  }
  std::string refusal(int ranks, const TrainConfig& c) const {
    return error_of([&] { run_with(ranks, c); });
  }
  void copy(const std::string& from, const std::string& to) const {
    std::filesystem::copy(folder_.path(from), folder_.path(to), std::filesystem::copy_options::recursive);
  }
  std::vector<std::string> checkpoints(const std::string& output) const {
    std::vector<std::string> names;
    for (const FoundCheckpoint& c : valid_checkpoints(folder_.path(output))) names.push_back(file_name(c.folder));
    return names;
  }
  void damage(const std::string& file) const {
    std::string bytes = read_file(folder_.path(file));
    bytes.back() = char(bytes.back() ^ 1);
    write_file_atomic(folder_.path(file), bytes);
  }
  using Names = std::vector<std::string>;
};

class ResumeAnywhere : public CheckpointLaws, public testing::WithParamInterface<std::tuple<const char*, const char*>> {};

// Saved on N ranks after step 2 of 4, resumed on M with the flags of the first run, every time by another strategy.
TEST_P(ResumeAnywhere, SaveAtNResumeAtM) {
  const auto& [type, kind] = GetParam();
  run_on(1, config(type, "whole"));
  const std::string whole = outcome("whole", file_of(type));
  for (int n = 1; n <= 4; ++n) {
    TrainConfig c = config(type, "saved" + std::to_string(n));
    c.fsdp_state_dict_type = kind;
    c.save_steps = 2;
    c.gradient_accumulation_steps = 12 / n;
    c.sharding_strategy = strategies[n % 3];
    run_with(n, c);
    EXPECT_EQ(outcome("saved" + std::to_string(n), file_of(type)), whole) << n;
    for (int m = 1; m <= 4; ++m) {
      const std::string output = "from" + std::to_string(n) + "to" + std::to_string(m);
      copy("saved" + std::to_string(n), output);
      remove_all(folder_.path(output) + "/checkpoint-4");
      remove_all(folder_.path(output) + "/" + file_of(type));
      c.output_dir = folder_.path(output);
      c.resume_from_checkpoint = "latest";
      c.sharding_strategy = strategies[(n + m) % 3];
      run_with(m, c);
      EXPECT_EQ(outcome(output, file_of(type)), whole) << output;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Kinds, ResumeAnywhere,
                         testing::Combine(testing::Values("lora", "full"), testing::Values("FULL_STATE_DICT", "SHARDED_STATE_DICT")),
                         [](const auto& info) { return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param); });

// Both kinds and both ways of writing hold the same numbers; sharded ones have a file for each rank and every element once.
TEST_F(CheckpointLaws, KindsHoldTheSame) {
  std::map<std::string, std::vector<float>> expected;
  for (const bool sharded : {false, true})
    for (const bool async : {false, true})
      for (const char* strategy : {"full_shard", "ddp"}) {
        const std::string output = std::string(sharded ? "sharded" : "full") + strategy + (async ? "async" : "");
        TrainConfig c = config("full", output);
        c.max_steps = 1, c.save_steps = 1, c.async_save = async, c.sharding_strategy = strategy;
        c.fsdp_state_dict_type = state_dict_kind(sharded);
        run_on(3, c);
        const CheckpointReader reader = CheckpointReader::open(folder_.path(output) + "/checkpoint-1");
        EXPECT_EQ(reader.manifest().sharded, sharded);
        EXPECT_EQ(file_exists(folder_.path(output) + "/checkpoint-1/shard-00002-of-00003.safetensors"), sharded);
        std::map<std::string, std::vector<float>> got;
        for (const auto& [name, shape] : reader.tensors())
          for (const char* state : {"values", "exp_avg", "exp_avg_sq"}) {
            int64_t n = 1;
            for (const int64_t d : shape) n *= d;
            auto& numbers = got[std::string(state) + name];
            numbers.resize(size_t(n));
            reader.read(state, name, 0, n, numbers.data());
          }
        if (expected.empty()) expected = got;
        EXPECT_TRUE(got == expected) << output;
      }
}

TEST_F(CheckpointLaws, RanksThatDoNotDivideAreRefused) {
  TrainConfig c = config("lora", "uneven");
  c.gradient_accumulation_steps = 4;
  c.save_steps = 2;
  run_with(1, c);
  c.resume_from_checkpoint = "true";
  const std::string error = refusal(3, c);
  EXPECT_NE(error.find("3 ranks"), std::string::npos) << error;
  EXPECT_NE(error.find("1, 2, 4 ranks"), std::string::npos) << error;
}

TEST_F(CheckpointLaws, OnlyAutoGoesBackBehindADamagedOne) {
  TrainConfig c = config("lora", "damaged");
  run_on(1, config("lora", "whole"));
  c.save_steps = 1;
  run_on(1, c);
  remove_all(folder_.path("damaged/checkpoint-4"));
  damage("damaged/checkpoint-3/optimizer.safetensors");
  for (const char* asked : {"true", "latest"}) {
    c.resume_from_checkpoint = asked;
    const std::string error = refusal(1, c);
    EXPECT_NE(error.find("checkpoint-3/optimizer.safetensors"), std::string::npos) << error;
    EXPECT_NE(error.find("auto"), std::string::npos) << error;
  }
  c.resume_from_checkpoint = "auto";
  testing::internal::CaptureStderr();
  run_on(1, c);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("going back to " + folder_.path("damaged") + "/checkpoint-2"), std::string::npos) << said;
  EXPECT_EQ(outcome("damaged", file_of("lora")), outcome("whole", file_of("lora")));
  EXPECT_EQ(checkpoints("damaged"), (Names{"checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"}));
}

// One command, again and again: it starts, goes on, and at the end does nothing new.
TEST_F(CheckpointLaws, AutoStartsFromTheBeginningWhenThereIsNothing) {
  TrainConfig c = config("lora", "restarted");
  c.save_steps = 2;
  c.resume_from_checkpoint = "auto";
  make_folder(folder_.path("restarted/checkpoint-2.tmp"));
  run_on(1, c);
  const std::string first = outcome("restarted", file_of("lora"));
  EXPECT_FALSE(folder_exists(folder_.path("restarted/checkpoint-2.tmp")));
  run_on(2, c);
  EXPECT_EQ(outcome("restarted", file_of("lora")), first);
}

TEST_F(CheckpointLaws, ChangedFilesAreNamed) {
  TrainConfig c = config("lora", "changed");
  c.save_steps = 2;
  run_on(1, c);
  remove_all(folder_.path("changed/checkpoint-4"));
  c.resume_from_checkpoint = "true";
  const std::string rows = read_file(folder_.path("rows.jsonl"));
  write_file_atomic(folder_.path("moved.jsonl"), rows);
  std::string other = rows;
  std::swap(other[other.find("[1, 2,") + 4], other[other.find("[1, 7,") + 4]);
  write_file_atomic(folder_.path("rows.jsonl"), other);
  const std::string error = refusal(1, c);
  EXPECT_NE(error.find("rows.jsonl: has changed"), std::string::npos) << error;
  c.dataset = folder_.path("moved.jsonl");
  EXPECT_EQ(refusal(1, c), "");
}

TEST_F(CheckpointLaws, SampledHash) {
  std::string bytes(size_t(20) << 20, 'x');
  const std::string path = folder_.path("big");
  const auto hash = [&] {
    write_file_atomic(path, bytes);
    return sampled_sha256(path);
  };
  const std::string before = hash();
  for (const size_t seen : {size_t(0), (size_t(1) << 20) - 1, size_t(16) << 20, (size_t(20) << 20) - 1}) {
    bytes[seen] = 'y';
    EXPECT_NE(hash(), before) << seen;
    bytes[seen] = 'x';
  }
  bytes[size_t(2) << 20] = 'y';
  EXPECT_EQ(hash(), before);
}

// Asked to stop in the first micro-batch, then at any time; resumed on another number of ranks until it is through.
TEST_F(CheckpointLaws, StoppedAnywhere) {
  run_on(1, config("lora", "whole"));
  TrainConfig c = config("lora", "stopped");
  c.resume_from_checkpoint = "auto";
  std::vector<TrainResult> results(2);
  run_local_ranks(2, [&](Comm& comm) {
    TrainConfig mine = c;
    mine.gradient_accumulation_steps = 6;
    results[size_t(comm.rank())] = train(mine, comm, request_stop);
  });
  EXPECT_TRUE(results[0].interrupted && results[1].interrupted);
  EXPECT_EQ(results[0].steps, 0);
  EXPECT_EQ(checkpoints("stopped"), Names{"checkpoint-0"});
  int stops = 1;
  for (bool interrupted = true; interrupted; stops += interrupted) {
    c.gradient_accumulation_steps = 12 / (1 + stops % 3);
    std::thread later;
    run_local_ranks(1 + stops % 3, [&](Comm& comm) {
      const TrainResult r = train(c, comm, [&] {
        later = std::thread([&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(stops * 7));
          request_stop();
        });
      });
      if (comm.rank() == 0) interrupted = r.interrupted;
    });
    later.join();
  }
  const std::string result = folder_.path("stopped/") + file_of("lora");
  remove_all(result);
  c.gradient_accumulation_steps = 12;
  while (!file_exists(result)) run_with(1, c);  // twice when the last stop came after the end
  EXPECT_EQ(outcome("stopped", file_of("lora")), outcome("whole", file_of("lora")));
}

TEST_F(CheckpointLaws, EpochsAreSaved) {
  TrainConfig c = config("lora", "epochs");
  c.gradient_accumulation_steps = 6, c.max_steps = -1, c.num_epochs = 2;  // 23 rows, 12 to a step
  c.save_strategy = "epoch";
  run_with(1, c);
  EXPECT_EQ(checkpoints("epochs"), (Names{"checkpoint-2", "checkpoint-4"}));
}

// The rows of the evaluation hold ids that training teaches to be rare: the lowest loss on them is that of an early step.
class BestLaw : public CheckpointLaws {
 protected:
  TrainConfig best(const std::string& output) const {
    TrainConfig c = config("lora", output);
    c.max_steps = 5;
    c.eval_dataset = folder_.path("rare.jsonl");
    write_file_atomic(c.eval_dataset, "{\"input_ids\": [1, 62, 63, 0, 62, 63, 0]}\n");
    c.load_best_model_at_end = true;
    c.eval_steps = 1, c.save_steps = 1, c.save_total_limit = 1;
    return c;
  }
  int64_t best_step(const std::string& output) const {
    return read_checkpoint_manifest(valid_checkpoints(folder_.path(output)).back().folder).best_step;
  }
};

TEST_F(BestLaw, BestIsKeptAndWrittenAtTheEnd) {
  run_on(2, best("best"));
  const int64_t step = best_step("best");
  ASSERT_LT(step, 5);
  EXPECT_EQ(checkpoints("best"), (Names{"checkpoint-" + std::to_string(step), "checkpoint-5"}));
  EXPECT_EQ(sha256_file(folder_.path("best/") + file_of("lora")),
            sha256_file(folder_.path("best/checkpoint-" + std::to_string(step) + "/") + file_of("lora")));
}

TEST_F(BestLaw, BestSurvivesResume) {
  run_on(1, best("whole"));
  TrainConfig c = best("resumed");
  c.save_total_limit = 0;
  run_on(1, c);
  for (const int gone : {4, 5}) remove_all(folder_.path("resumed/checkpoint-" + std::to_string(gone)));
  c.resume_from_checkpoint = "true";
  c.save_total_limit = 1;
  run_on(3, c);
  EXPECT_EQ(outcome("resumed", file_of("lora")), outcome("whole", file_of("lora")));
  EXPECT_EQ(checkpoints("resumed"), checkpoints("whole"));
}

TEST_F(BestLaw, ContradictionsAreRefused) {
  const auto refused = [&](const char* words, auto change) {
    TrainConfig c = best("refused");
    change(c);
    EXPECT_NE(refusal(1, c).find(words), std::string::npos) << words;
  };
  refused("no rows to evaluate", [](TrainConfig& c) { c.eval_dataset.clear(); });
  refused("no checkpoints", [](TrainConfig& c) { c.save_strategy = "no"; });
  refused("no checkpoints", [](TrainConfig& c) { c.save_steps = 0; });
  refused("--eval_strategy epoch", [](TrainConfig& c) { c.save_strategy = "epoch"; });
  refused("--eval_steps 3", [](TrainConfig& c) { c.eval_steps = 3, c.save_steps = 4; });
}

// A file stands where the folder of step 2 would be.
TEST_F(CheckpointLaws, AFailedSaveStopsOrIsSaid) {
  for (const bool async : {false, true}) {
    TrainConfig c = config("lora", async ? "failed_async" : "failed");
    c.save_steps = 1, c.async_save = async;
    c.fsdp_state_dict_type = async ? "SHARDED_STATE_DICT" : "FULL_STATE_DICT";
    make_folder(c.output_dir);
    write_file_atomic(c.output_dir + "/checkpoint-2", "in the way");
    const std::string error = error_of([&] { run_on(2, c); });
    EXPECT_NE(error.find("checkpoint of step 2 could not be written"), std::string::npos) << error;
    EXPECT_EQ(checkpoints(file_name(c.output_dir)).front(), "checkpoint-1");
    c.resume_from_checkpoint = "auto";
    c.on_save_error = "continue";
    testing::internal::CaptureStderr();
    run_on(2, c);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("checkpoint of step 2 could not be written"), std::string::npos) << said;
    EXPECT_EQ(checkpoints(file_name(c.output_dir)), (Names{"checkpoint-1", "checkpoint-3", "checkpoint-4"}));
  }
}

// What a checkpoint says of its run.
TEST_F(CheckpointLaws, Manifest) {
  TrainConfig c = config("lora", "told");
  c.save_steps = 3;
  const ProgramFacts program{"tessera 9", {{"lr", "0.01"}}};
  run_local_ranks(2, [&](Comm& comm) { train(c, comm, {}, program); });
  const CheckpointManifest m = read_checkpoint_manifest(folder_.path("told/checkpoint-3"));
  EXPECT_EQ(m.program, "tessera 9");
  EXPECT_EQ(m.configuration, program.configuration);
  EXPECT_EQ(m.step, 3);
  EXPECT_EQ(m.ranks, 2);
  EXPECT_EQ(m.micro_batches, 24);
  EXPECT_EQ(m.seed, c.seed);
  EXPECT_EQ(m.model, folder_.path("model"));
  EXPECT_TRUE(m.base_files.contains("config.json"));
  EXPECT_EQ(m.data_files.at(c.dataset).sha256, sha256_file(c.dataset));
  EXPECT_EQ(m.epoch_order_sha256, epoch_order_sha256(c, 23, m.epoch));
}

}  // namespace
}  // namespace tessera
