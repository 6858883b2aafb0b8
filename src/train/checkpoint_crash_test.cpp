// A run that is ended at any change it makes to the disk goes on to the same weights and the same log, to the bit; a disk that fails at any
// change costs no checkpoint that was there before.
#include <algorithm>
#include <cerrno>
#include <iostream>
#include <sstream>

#include "core/error.h"
#include "io/file.h"
#include "testing/faulty_disk.h"
#include "train/checkpoint_files.h"
#include "train/loop.h"
#include "train/train_test.h"

namespace tessera {
namespace {

// How runs end, in the middle of every second write: killed (what was written so far stays), or with a loss of power, by seed.
enum class End { killed, power };

struct Kind {
  const char* name;
  const char* state_dict_type;
  int ranks;
  bool async;
  End end;
};
void PrintTo(const Kind& k, std::ostream* out) { *out << k.name; }

std::vector<Kind> kinds() {
  constexpr const char *full = "FULL_STATE_DICT", *sharded = "SHARDED_STATE_DICT";
  return {{"full_1", full, 1, false, End::killed},
          {"full_2", full, 2, false, End::power},
          {"sharded_1", sharded, 1, false, End::power},
          {"sharded_2", sharded, 2, false, End::killed},
          {"sharded_2_async", sharded, 2, true, End::power}};
}

// Model and rows lie beside the faulty disk.
class Crash : public testing::TestWithParam<Kind> {
 protected:
  Crash() {
    make_folder(folder_ / "model");
    write_file_atomic(
        folder_ / "model/config.json",
        R"({"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "num_key_value_heads": 1, "vocab_size": 24, "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "initializer_range": 0.1})");
    std::string rows;
    for (int i = 0; i < 7; ++i) rows += "{\"input_ids\": [1, " + std::to_string(2 + i) + ", 5, " + std::to_string(20 - i) + "]}\n";
    write_file_atomic(folder_ / "rows.jsonl", rows);
    run(config("whole"), 1);
    whole_ = outcome("whole");
  }

  TrainConfig config(const std::string& output) const {
    TrainConfig c;
    c.model = folder_ / "model", c.dataset = folder_ / "rows.jsonl", c.output_dir = folder_ / output;
    c.init = "random";
    c.train_type = "lora";
    c.precision = "fp32";
    c.lora_target_modules = {"q_proj"};
    c.lora_rank = 2, c.lora_dropout = 0.1, c.init_lora_weights = "false";
    c.batch_size = 1;
    c.max_steps = 2, c.save_steps = 1, c.save_total_limit = 1;
    c.fsdp_state_dict_type = GetParam().state_dict_type, c.async_save = GetParam().async;
    c.lr = 1e-2;
    c.threads = 1;
    c.logging_steps = 100;
    return c;
  }

  void run(TrainConfig c, int ranks) const {
    c.gradient_accumulation_steps = 2 / ranks;
    run_local_ranks(ranks, [&](Comm& comm) { train(c, comm); });
  }

  // From what is there, on the other number of ranks; "" or what stopped it.
  std::string go_on() const {
    TrainConfig c = config("disk/out");
    c.resume_from_checkpoint = "auto";
    return error_of([&] { run(c, 3 - GetParam().ranks); });
  }

  // What must not depend on crashes: weights, and the steps of the log without times and memory.
  std::string outcome(const std::string& output) const {
    std::string text = sha256_file(folder_.path(output) + "/adapter_model.safetensors") + "\n";
    std::istringstream lines(read_file(folder_.path(output) + "/train.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      GoldenJson step = GoldenJson::parse(line);
      if (step.contains("save_stall_seconds")) continue;
      for (const char* key : {"seconds", "tokens_per_second", "memory", "memory_peak"}) step.erase(key);
      text += step.dump() + "\n";
    }
    return text;
  }

  void fresh_disk() const {
    std::filesystem::remove_all(folder_ / "disk");
    std::filesystem::create_directory(folder_ / "disk");
  }

  // Every checkpoint that is found is whole.
  size_t whole_checkpoints() const {
    const auto all = list_checkpoints(folder_ / "disk/out");
    for (const FoundCheckpoint& c : all) {
      EXPECT_EQ(c.fault, "");
      EXPECT_EQ(error_of([&] { check_checkpoint_files(read_checkpoint_manifest(c.folder), c.folder); }), "");
    }
    return all.size();
  }

  // Nothing is left of what was being written or removed.
  void expect_no_leftovers() const {
    for (const std::string& name : list_folder(folder_ / "disk/out"))
      for (const char* sign : {".tmp", ".old-", ".gone-"}) EXPECT_EQ(name.find(sign), std::string::npos) << name;
  }

  const TestFolder folder_;
  std::string whole_;
};

// A change at which a checkpoint was there and must stay.
bool second_save_began(const std::vector<std::string>& changes) {
  return std::any_of(changes.begin(), changes.end(),
                     [](const std::string& c) { return c.find("out/checkpoint-2.tmp") != std::string::npos; });
}

// Each change of a run, from its first to its last, is the one at which it ends. It then goes on with what is found.
TEST_P(Crash, ARunEndedAtAnyChangeGoesOnToTheSameBits) {
  int64_t points = 0, resumed = 0;
  bool crashed = true;
  for (int64_t k = 0; crashed; ++k) {
    fresh_disk();
    FaultyDisk disk(folder_ / "disk", {.crash_at = k, .torn = k % 2 == 1});
    try {
      run(config("disk/out"), GetParam().ranks);
    } catch (const SimulatedCrash&) {
    }
    crashed = disk.crashed();
    disk.heal();
    if (crashed && GetParam().end == End::power) disk.lose_power(uint64_t(k));
    const std::string when = "at change " + std::to_string(k) + " after " + (k ? disk.changes().back() : "nothing");
    const size_t found = whole_checkpoints();
    EXPECT_TRUE(found > 0 || !second_save_began(disk.changes())) << when;
    ASSERT_EQ(crashed ? go_on() : "", "") << when;
    ASSERT_EQ(outcome("disk/out"), whole_) << when;
    expect_no_leftovers();
    points += crashed, resumed += crashed && found;
  }
  EXPECT_GT(resumed, points / 4);
  std::cout << GetParam().name << ": a run ended at " << points << " changes, " << resumed << " times it went on from a checkpoint\n";
}

class Fault : public Crash {};

// The disk fails at a change, or is full from it on; the run says so and stops, or goes on without that checkpoint.
TEST_P(Fault, ADiskThatFailsAtAnyChangeCostsNoOldCheckpoint) {
  int64_t points = 0, survived = 0;
  for (int64_t k = 0;; ++k) {
    fresh_disk();
    const int error = k % 2 ? EIO : ENOSPC;
    FaultyDisk disk(folder_ / "disk", {.fail_at = k, .error = error});
    TrainConfig c = config("disk/out");
    c.on_save_error = k / 2 % 2 ? "continue" : "stop";
    const std::string message = error_of([&] { run(c, GetParam().ranks); });
    std::vector<std::string> changes = disk.changes();
    disk.heal();
    if (int64_t(changes.size()) <= k) break;
    ++points;
    changes.resize(size_t(k) + 1);
    const std::string when = "at change " + std::to_string(k) + ", " + changes.back() + ": " + message;
    EXPECT_TRUE(whole_checkpoints() > 0 || !second_save_began(changes)) << when;
    if (message.empty()) {
      ++survived;
    } else {
      for (const char* part : {error == EIO ? "Input/output error" : "No space left on device", "allowed: ", "do this: "})
        EXPECT_NE(message.find(part), std::string::npos) << when;
      ASSERT_EQ(go_on(), "") << when;
    }
    ASSERT_EQ(outcome("disk/out"), whole_) << when;
  }
  EXPECT_GT(survived, 0);
  std::cout << GetParam().name << ": the disk failed at " << points << " changes, " << survived << " times training went on\n";
}

INSTANTIATE_TEST_SUITE_P(Kinds, Fault, testing::Values(kinds()[0], kinds()[4]),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(Kinds, Crash, testing::ValuesIn(kinds()), [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tessera
