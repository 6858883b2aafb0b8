// A rank that does not come: the others do not wait for ever, and say who it is.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fcntl.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "comm/comm.h"
#include "comm/lost_ranks.h"
#include "core/text.h"

namespace tessera {
namespace {

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "\"" << part << "\" is not in:\n" << text;
}

TEST(LostRanks, TextNamesWhoIsMissingAndWhere) {
  const std::string text = lost_ranks_text("all_gather 57", 2,
                                           {{0, true, true, Activity::backward, ""},
                                            {1, false, true, Activity::forward, "process 12, stopped"},
                                            {2, true, true, Activity::backward, ""},
                                            {3, true, true, Activity::saving, ""},
                                            {4, false, false, Activity::starting, ""}});
  EXPECT_EQ(text.substr(0, text.find('\n')),
            "ranks 1, 4: did not come to all_gather 57 within 2 s; last seen: rank 1 in phase forward (process 12, stopped), rank 4 in a "
            "phase that is not known; waiting: ranks 0, 2 in phase backward, rank 3 in phase saving");
  expect_part(text, "--comm_timeout 2 s");
  expect_part(lost_ranks_text("barrier 1", 2, {RankState(), RankState()}), "barrier 1: took longer than 2 s although every rank is in it");
}

TEST(LostRanks, TextOfAProcess) {
  EXPECT_EQ(process_text(0), "");
  EXPECT_EQ(process_text(getpid()), str("process ", getpid(), ", computing"));
  const pid_t child = fork();
  if (child == 0) {
    raise(SIGSTOP);
    _exit(0);
  }
  for (int tries = 0; tries < 2000 && !ends_with(process_text(child), "stopped"); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(process_text(child), str("process ", child, ", stopped"));
  kill(child, SIGKILL);
  for (int tries = 0; tries < 2000 && !ends_with(process_text(child), "ended"); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(process_text(child), str("process ", child, ", ended"));
}

// `absent` stays away until all others have ended; what the others fail with.
std::string error_without(int ranks, int absent, const std::function<void(Comm&)>& f) {
  std::atomic<int> waiting = ranks - 1;
  try {
    run_local_ranks(ranks, [&](Comm& comm) {
      comm.set_deadline(0.1);
      if (comm.rank() == absent) {
        const Doing phase(Activity::loading);
        while (waiting > 0) std::this_thread::yield();
        return;
      }
      const Doing phase(Activity::backward);
      try {
        f(comm);
      } catch (...) {
        --waiting;
        throw;
      }
      --waiting;
    });
  } catch (const RankLost& e) {
    return e.what();
  }
  return "no rank was lost";
}

class LocalDeadline : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Absent, LocalDeadline, testing::Values(0, 1, 2));

TEST_P(LocalDeadline, OfEachExchange) {
  const int absent = GetParam();
  const std::string missing = str("rank ", absent, ": did not come to ");
  const std::string seen = str("within 0.1 s; last seen: rank ", absent, " in phase loading; waiting: ");
  std::vector<Range> parts(3);
  float sum = 0, x = 0;
  const auto check = [&](const std::string& call, const std::function<void(Comm&)>& f) {
    const std::string text = error_without(3, absent, f);
    expect_part(text, missing + call + " 1 " + seen);
    expect_part(text, "in phase backward");
  };
  check("barrier", [](Comm& c) { c.barrier(); });
  check("all_gather", [&](Comm& c) { c.all_gather(nullptr, parts); });
  check("reduce_scatter", [&](Comm& c) { c.reduce_scatter(&sum, &x, parts); });
  check("broadcast", [](Comm& c) { c.broadcast(nullptr, 0, 0); });
  check("split", [](Comm& c) { c.split(0, 0); });
  check("shared_window", [](Comm& c) { c.shared_window(4096); });
}

// The group of a second thread has the deadline of the group it was split from; ranks are named by the numbers they have in the run.
TEST(Deadline, OfASplitGroup) {
  const auto wait_in_group = [](Comm& comm) {
    comm.set_deadline(0.1);
    const auto group = comm.split(comm.rank() == 0, -comm.rank());  // rank 0 alone; ranks 2, 1
    if (comm.rank() == 2) {
      std::thread second([&] { EXPECT_THROW(group->barrier(), RankLost); });
      second.join();
      group->barrier();
    }
    if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  };
  EXPECT_THROW(run_local_ranks(3, wait_in_group), Error);
}

TEST(Deadline, ALateRankDoesNotReadWhatIsGone) {
  std::atomic<bool> late = false;
  EXPECT_THROW(run_local_ranks(2,
                               [&](Comm& comm) {
                                 comm.set_deadline(0.05);
                                 const std::vector<Range> parts = {{0, 4}, {4, 8}};
                                 if (comm.rank() == 0) {
                                   try {
                                     std::vector<std::byte> shown(8);
                                     comm.all_gather(shown.data(), parts);
                                   } catch (const RankLost&) {
                                     late = true;
                                     throw;
                                   }
                                 }
                                 while (!late) std::this_thread::yield();
                                 std::vector<std::byte> mine(8);
                                 comm.all_gather(mine.data(), parts);
                               }),
               RankLost);
}

TEST(StaleFiles, OnlyWhatNobodyHoldsIsRemoved) {
  const std::string folder = str(testing::TempDir(), "tessera_stale_", getpid(), "/");
  std::filesystem::create_directories(folder);
  const auto make = [&](const std::string& name, int age) {
    std::ofstream(folder + name) << "x";
    const timespec then = {time(nullptr) - age, 0}, times[] = {then, then};
    EXPECT_EQ(utimensat(AT_FDCWD, (folder + name).c_str(), times, 0), 0);
  };
  make("mpich_shar_tmpAb3x9Z", 3600);
  make("ucx_shm_posix_12ab", 3600);
  make("ucx_shm_posix_34cd", 0);  // perhaps somebody starts just now
  make("mpich_shar_tmpheld1", 3600);
  make("ucx_shm_posix_", 3600);  // not a name of theirs
  make("database", 3600);
  std::ifstream held(folder + "mpich_shar_tmpheld1");
  EXPECT_EQ(remove_stale_files(folder), 2);
  EXPECT_FALSE(std::filesystem::exists(folder + "mpich_shar_tmpAb3x9Z"));
  EXPECT_FALSE(std::filesystem::exists(folder + "ucx_shm_posix_12ab"));
  for (const char* kept : {"ucx_shm_posix_34cd", "mpich_shar_tmpheld1", "ucx_shm_posix_", "database"})
    EXPECT_TRUE(std::filesystem::exists(folder + kept)) << kept;
  EXPECT_EQ(remove_stale_files(folder + "nothing"), 0);
  std::filesystem::remove_all(folder);
}

// Under mpiexec, one process per rank (tests/CMakeLists.txt): rank 1 is stopped, or computes on and on, while the others wait for it in a
// group in which ranks have other numbers.
void wait_for_rank_1(const std::function<void()>& instead) {
  const auto comm = make_mpi_comm();
  comm->set_deadline(1);
  const auto group = comm->split(0, -comm->rank());
  try {
    comm->barrier();
    if (comm->rank() == 1) {
      const Doing phase(Activity::forward);
      instead();
    }
    const Doing phase(Activity::backward);
    group->barrier();
  } catch (const RankLost& e) {
    std::fprintf(stderr, "[rank %d] %s\n", comm->rank(), e.what());
    comm->abort(exit_rank_lost);
  }
}

class MpiDeadline : public testing::Test {
 protected:
  void SetUp() override {
    if (!started_by_mpi()) GTEST_SKIP() << "skipped: not started by mpiexec";
  }
};
TEST_F(MpiDeadline, ARankIsStopped) {
  wait_for_rank_1([] { raise(SIGSTOP); });
}
TEST_F(MpiDeadline, ARankComputesOn) {
  wait_for_rank_1([] {
    for (std::atomic<int> i = 0;; ++i) continue;
  });
}

}  // namespace
}  // namespace tessera
