#include "cli/supervise.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/text.h"

namespace tessera {
namespace {

TEST(Supervise, JudgesAStartByMpiexecsCode) {
  EXPECT_EQ(judge_start(0), StartEnd::done);
  EXPECT_EQ(judge_start(75), StartEnd::continue_me);
  EXPECT_EQ(judge_start(1), StartEnd::user_error);
  for (const int code : {9, 6, 11, 70, 137, 255}) EXPECT_EQ(judge_start(code), StartEnd::died) << code;
  EXPECT_EQ(describe_end(9), "signal 9 (Killed)");
  EXPECT_EQ(describe_end(137), "signal 9 (Killed)");
  EXPECT_EQ(describe_end(70), "exit code 70 (a rank did not come in time)");
  EXPECT_EQ(describe_end(255), "exit code 255");
}

TEST(Supervise, ReadsWhoEndedFromWhatMpiexecSays) {
  EXPECT_EQ(dead_process("=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 4321 RUNNING AT vm\n=   EXIT CODE: 9\n"), 4321);
  EXPECT_EQ(dead_process("PID 12\n"), 0);
  EXPECT_EQ(dead_process(""), 0);
}

// A script stands for mpiexec: each start takes its exit code from a list, and notes its arguments. In a process of its own, because
// signals and children are of the whole process.
class Starts : public testing::Test {
 protected:
  Starts() : folder_(str(testing::TempDir(), "tessera_starts_", getpid())) { std::filesystem::create_directories(folder_); }
  ~Starts() override { std::filesystem::remove_all(folder_); }

  int run(const std::string& codes, int64_t restarts, const std::string& body = "") {
    std::ofstream(folder_ + "/codes") << codes;
    std::ofstream(folder_ + "/mpiexec") << "#!/bin/sh\ncd " << folder_ << "\necho \"$@\" >> starts\n"
                                        << body << "\ncode=$(head -n 1 codes); sed -i 1d codes\nexit $code\n";
    std::filesystem::permissions(folder_ + "/mpiexec", std::filesystem::perms::owner_all);
    const pid_t child = fork();
    if (child == 0) {
      close(2);
      _exit(supervise_ranks({folder_ + "/mpiexec", "train", "--lr", "1"}, 2, restarts));
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string starts() const {
    std::ifstream in(folder_ + "/starts");
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  const std::string folder_, first_ = "train --lr 1\n", again_ = "train --lr 1 --resume_from_checkpoint auto\n";
};

TEST_F(Starts, AgainUntilTheRunIsDone) {
  EXPECT_EQ(run("9\n70\n0\n", 5), 0);
  EXPECT_EQ(starts(), first_ + again_ + again_);
}

TEST_F(Starts, NotMoreOftenThanAsked) {
  EXPECT_EQ(run("9\n11\n6\n0\n", 2), 6);
  EXPECT_EQ(starts(), first_ + again_ + again_);
}

TEST_F(Starts, AStoppedRunIsNotStartedAgain) {
  EXPECT_EQ(run("75\n0\n", 5), 75);
  EXPECT_EQ(starts(), first_);
}

TEST_F(Starts, AFaultOfTheUserIsNotRetried) {
  EXPECT_EQ(run("1\n0\n", 5), 1);
  EXPECT_EQ(starts(), first_);
}

TEST_F(Starts, NoneIsLeftWhenItReturns) {
  EXPECT_EQ(run("9\n0\n", 1, "sleep 0.3 & echo $! >> sleepers"), 0);
  std::ifstream in(folder_ + "/sleepers");
  int seen = 0;
  for (pid_t id; in >> id; ++seen) EXPECT_NE(kill(id, 0), 0) << id;
  EXPECT_EQ(seen, 2);
}

TEST_F(Starts, AfterASignalNothingIsStartedAgain) {
  EXPECT_EQ(run("9\n0\n", 5, "kill -TERM $PPID; sleep 0.2; trap '' TERM; sleep 0.2"), 128 + SIGTERM);
  EXPECT_EQ(starts(), first_);
}

}  // namespace
}  // namespace tessera
