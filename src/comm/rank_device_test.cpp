#include "comm/rank_device.h"

#include <gtest/gtest.h>

#include "backend/backend.h"

namespace tessera {
namespace {

TEST(AssignGpus, RanksThatSeeAllTakeTheirNumber) {
  const std::vector<std::string> all = {"a", "b", "c", "d"};
  EXPECT_EQ(assign_gpus({all, all, all, all}), (std::vector{0, 1, 2, 3}));
  EXPECT_EQ(assign_gpus({all, all}), (std::vector{0, 1}));
}

TEST(AssignGpus, RanksThatSeeOneEachTakeTheirOnlyOne) { EXPECT_EQ(assign_gpus({{"c"}, {"a"}, {"d"}, {"b"}}), (std::vector{0, 0, 0, 0})); }

TEST(AssignGpus, OneGpuIsNeverGivenTwice) {
  EXPECT_EQ(assign_gpus({{"a", "b"}, {"b", "a"}, {"a", "b"}}), (std::vector{0, 0, -1}));
  EXPECT_EQ(assign_gpus({{"a"}, {"a"}}), (std::vector{0, -1}));
  EXPECT_EQ(assign_gpus({{}}), (std::vector{-1}));
}

TEST(RankDevice, TheCpuIsNotChosen) {
  run_local_ranks(3, [](Comm& comm) { EXPECT_EQ(rank_device("cpu", comm), "cpu"); });
}

TEST(RankDevice, WithoutGpuAutoIsTheCpuAndCudaIsForTheBackendToRefuse) {
  if (cuda_devices() > 0) GTEST_SKIP() << "skipped: there is a GPU";
  run_local_ranks(2, [](Comm& comm) {
    EXPECT_EQ(rank_device("auto", comm), "cpu");
    EXPECT_EQ(rank_device("cuda", comm), "cuda");
    EXPECT_THROW(make_backend("cuda", 1), Error);
  });
  EXPECT_EQ(rank_device("cuda:1", *make_single_comm()), "cuda:1");
}

TEST(RankDevice, OneGpuIsNotForSeveralRanks) {
  const auto message = [](Comm& comm) {
    try {
      rank_device("cuda:0", comm);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  run_local_ranks(2, [&](Comm& comm) {
    const std::string text = message(comm);
    EXPECT_EQ(text.substr(0, text.find('\n')), "--device cuda:0: one GPU for 2 ranks of a machine");
  });
}

TEST(RankDevice, WithAGpuAutoTakesIt) {
  if (cuda_devices() == 0) GTEST_SKIP() << "skipped: there is no GPU";
  EXPECT_EQ(rank_device("auto", *make_single_comm()), "cuda:0");
  EXPECT_EQ(usable_gpus().size(), size_t(cuda_devices()));
  run_local_ranks(cuda_devices() + 1, [](Comm& comm) {
    if (comm.rank() < cuda_devices())
      EXPECT_EQ(rank_device("cuda", comm), "cuda:" + std::to_string(comm.rank()));
    else
      EXPECT_THROW(rank_device("cuda", comm), Error);
  });
}

}  // namespace
}  // namespace tessera
