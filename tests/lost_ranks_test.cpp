// Ranks that hang or die: the others end in time and say who it was; launch starts them again; what comes out is the same.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

class LostRanks : public Tiny {
 protected:
  // Six micro-batches to a step on any number of ranks.
  Words long_training(const std::string& output, int ranks, const Words& more = {}) const {
    return training(
        output,
        Words{"--train_type", "qlora", "--max_steps", "120", "--gradient_accumulation_steps", str(6 / ranks), "--save_steps", "20"} + more);
  }
  Words launched(int ranks, const std::string& output, const Words& launch = {}, const Words& more = {}) const {
    return tessera(Words{"launch", "--num_processes", str(ranks)} + launch + long_training(output, ranks, more));
  }
  void run_whole() const { well(run(tessera(long_training("whole", 1)))); }
};

TEST_F(LostRanks, AStoppedRankIsNamedAndAllEnd) {
  Program program(launched(3, "hangs", {}, {"--comm_timeout", "2"}));
  wait_for(program, "hangs/checkpoint-20");
  kill(rank_with(path("hangs"), 1), SIGSTOP);
  const Ended ended = program.wait(62);
  EXPECT_EQ(ended.code, 70);
  expect_contains(ended.err, "rank 1: did not come to ");
  expect_contains(ended.err, "stopped); waiting: ranks 0, 2 in phase ");
}

// As a user would: three ranks, one is killed; what is left of the machine goes on with two.
TEST_F(LostRanks, ThreeRanksLoseOneAndTwoGoOn) {
  run_whole();
  Program program(launched(3, "three"));
  wait_for(program, "three/checkpoint-40");
  kill(rank_with(path("three"), 2), SIGKILL);
  EXPECT_NE(program.wait(20).code, 0);
  EXPECT_FALSE(file_exists(path("three/adapter_model.safetensors")));
  // The steps are told as for three ranks: the checkpoint knows that a step is six micro-batches.
  const Words two = {"launch", "--num_processes", "2"};
  const Ended resumed = well(run(tessera(two + long_training("three", 3, {"--resume_from_checkpoint", "auto"}))));
  expect_contains(resumed.err, "resumed  ");
  EXPECT_EQ(outcome("three"), outcome("whole"));
}

TEST_F(LostRanks, LaunchStartsThemAgain) {
  run_whole();
  Program program(launched(2, "again", {"--max_restarts", "2"}));
  for (const char* saved : {"again/checkpoint-20", "again/checkpoint-80"}) {
    wait_for(program, saved);
    kill(rank_with(path("again"), 1), SIGKILL);
  }
  const Ended ended = well(program.wait());
  expect_contains(ended.err, "launch: rank 1 (process ");
  expect_contains(ended.err, "ended by signal 9 (Killed); all ranks start again from the last checkpoint; restarts left: 1 of 2");
  expect_contains(ended.err, "restarts left: 0 of 2");
  EXPECT_EQ(outcome("again"), outcome("whole"));
}

TEST_F(LostRanks, LaunchDoesNotStartAgainWhatAUserStopped) {
  Program program(launched(2, "stopped", {"--max_restarts", "2"}));
  wait_for(program, "stopped/checkpoint-20");
  program.send(SIGUSR1);
  const Ended ended = program.wait();
  EXPECT_EQ(ended.code, 75) << ended.err;
  EXPECT_EQ(ended.err.find("start again"), std::string::npos) << ended.err;
}

TEST_F(LostRanks, LaunchDoesNotRepeatAFaultOfTheUser) {
  const Ended ended = run(launched(2, "wrong", {"--max_restarts", "2"}, {"--dataset", path("nothing.jsonl")}));
  EXPECT_EQ(ended.code, 1);
  expect_contains(ended.err, "nothing.jsonl");
  EXPECT_EQ(ended.err.find("start again"), std::string::npos) << ended.err;
}

// One rank hangs, so the clean stop that the first signal asks for cannot come; the second one does not wait for it.
TEST_F(LostRanks, ASecondSignalEndsAtOnce) {
  run_whole();
  Program program(launched(2, "twice", {"--max_restarts", "2"}));
  wait_for(program, "twice/checkpoint-40");
  kill(rank_with(path("twice"), 1), SIGSTOP);
  program.send(SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  EXPECT_TRUE(program.running());
  program.send(SIGTERM);
  const Ended ended = program.wait(20);
  EXPECT_NE(ended.code, 0);
  EXPECT_NE(ended.code, 75);
  well(run(launched(2, "twice", {}, {"--resume_from_checkpoint", "auto"})));
  EXPECT_EQ(outcome("twice"), outcome("whole"));
}

}  // namespace
}  // namespace tessera
