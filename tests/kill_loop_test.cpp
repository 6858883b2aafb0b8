// Ranks die at any moment, again and again; what comes out is what comes out of a run that nothing has happened to.
// TESSERA_KILLS and TESSERA_SEED ask for more of it (`make torture`).
#include <signal.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <thread>

#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t steps = 60;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

int64_t asked(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

class KillLoop : public Tiny {
 protected:
  // The runs differ in how and how often they save and how much they keep, in nothing that changes a number.
  Words training_of(const std::string& output, int64_t run) const {
    return mpiexec(
        2, training(output, {"--train_type", "qlora", "--max_steps", str(steps), "--gradient_accumulation_steps", "2", "--save_steps",
                             str(1 + run % 3), "--save_total_limit", str(1 + run % 2), "--comm_timeout", "20", "--fsdp_state_dict_type",
                             run % 2 ? "FULL_STATE_DICT" : "SHARDED_STATE_DICT", "--resume_from_checkpoint", "auto"}));
  }
  int64_t logged(const std::string& output) const {
    if (!file_exists(path(output + "/train.jsonl"))) return 0;
    const std::string text = read_file(path(output + "/train.jsonl"));
    return std::count(text.begin(), text.end(), '\n');
  }
  bool half_saved(const std::string& output) const {
    if (!fs::exists(path(output))) return false;
    return std::any_of(fs::directory_iterator(path(output)), fs::directory_iterator(), [](const auto& entry) {
      return entry.is_directory() && entry.path().filename().string().find("tmp") != std::string::npos;
    });
  }
  // One life of the ranks of a run, with a SIGKILL after `delay` seconds. True when the run came to its end.
  bool live(const Words& words, const std::string& output, double delay);

  std::mt19937_64 random_{uint64_t(asked("TESSERA_SEED", 1))};
  std::map<std::string, int64_t> kills_;  // by what the run was at
  int64_t killed_ = 0, lives_ = 0;
};

bool KillLoop::live(const Words& words, const std::string& output, double delay) {
  ++lives_;
  const auto start = Clock::now();
  const int64_t before = logged(output);
  const bool half_before = half_saved(output);  // of an earlier life; goes when the run has started
  Program program(words);
  const int rank = int(random_() % 2);
  pid_t victim = -1;
  while (program.running() && (victim = rank_with(path(output), rank)) < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  while (program.running() && seconds_since(start) < delay) std::this_thread::sleep_for(std::chrono::microseconds(200));
  const bool sent = program.running() && victim > 0 && kill(victim, SIGKILL) == 0;
  const Ended ended = program.wait(30);
  if (ended.code == 0) return true;
  EXPECT_TRUE(sent) << "code " << ended.code << " without a kill\n" << ended.err;
  ++killed_;
  const bool started = logged(output) != before, saving = half_saved(output) && (started || !half_before);
  ++kills_[saving ? "saving" : started ? "step" : "loading"];
  return false;
}

TEST_F(KillLoop, EndsAsIfNothingHadHappened) {
  const int64_t kills = asked("TESSERA_KILLS", 50);
  const auto start = Clock::now();
  well(run(training_of("whole", 0)));
  const double whole_seconds = seconds_since(start);
  const std::string whole = outcome("whole");
  EXPECT_EQ(int64_t(split(whole, '\n').size()), steps + 2) << "a hash, the steps, an empty end";
  std::uniform_real_distribution<double> delay(0, whole_seconds);
  int64_t runs = 0;
  while (killed_ < kills && !HasFailure()) {
    const std::string output = str("run-", runs);
    for (bool done = false; !done && !HasFailure();)
      done = live(training_of(output, runs), output, killed_ < kills ? delay(random_) : 2 * whole_seconds + 10);
    EXPECT_EQ(outcome(output), whole) << "run " << runs << ", a step lost or doubled";
    if (!HasFailure()) fs::remove_all(path(output));
    ++runs;
    if (runs % 50 == 0) std::printf("%lld kills, %lld runs, %.0f s\n", (long long)killed_, (long long)runs, seconds_since(start));
  }
  std::printf("kill loop: %lld kills survived (loading %lld, step %lld, saving %lld), %lld runs of %lld steps, %lld restarts, %.1f s\n",
              (long long)killed_, (long long)kills_["loading"], (long long)kills_["step"], (long long)kills_["saving"], (long long)runs,
              (long long)steps, (long long)(lives_ - runs), seconds_since(start));
  for (const char* part : {"loading", "step", "saving"}) EXPECT_GT(kills_[part], 0) << "no kill hit this part";
}

}  // namespace
}  // namespace tessera
