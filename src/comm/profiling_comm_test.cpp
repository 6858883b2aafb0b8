#include "comm/profiling_comm.h"

#include <gtest/gtest.h>

#include <map>
#include <thread>

namespace tessera {
namespace {

std::map<std::string, StepProfile::Row> by_name(const std::vector<StepProfile::Row>& rows) {
  std::map<std::string, StepProfile::Row> out;
  for (const StepProfile::Row& row : rows) out[row.operation.name] = row;
  return out;
}

TEST(ProfilingComm, PassesOnAndRecords) {
  run_local_ranks(2, [](Comm& plain) {
    Profile profile(plain.rank());
    ProfilingComm comm(plain, profile);
    {
      const ProfileStep step(1);
      EXPECT_EQ(gather_values(comm, int64_t(comm.rank() + 5)), (std::vector<int64_t>{5, 6}));
      const std::vector<float> x = {1, 2, 3};
      const std::vector<Range> parts = {{0, 2}, {2, 3}};
      std::vector<float> sum(2, 0.5f);
      comm.reduce_scatter(sum.data(), x.data(), parts);
      EXPECT_EQ(sum, comm.rank() == 0 ? (std::vector<float>{2.5f, 4.5f}) : (std::vector<float>{6.5f, 0.5f}));
      int64_t told = comm.rank() == 1 ? 99 : 0;
      comm.broadcast(reinterpret_cast<std::byte*>(&told), sizeof told, 1);
      EXPECT_EQ(told, 99);
      comm.barrier();
    }
    const StepProfile p = profile.average();
    auto rows = by_name(p.operations);
    EXPECT_EQ(rows.size(), 4u);
    EXPECT_EQ(rows["all_gather"].operation.bytes, 16) << "8 bytes received: read there, written here";
    EXPECT_EQ(rows["reduce_scatter"].operation.bytes, comm.rank() == 0 ? 32 : 16);
    EXPECT_EQ(rows["broadcast"].operation.bytes, comm.rank() == 0 ? 16 : 0);
    EXPECT_EQ(rows["barrier"].calls, 1);
    EXPECT_GT(p.phases[size_t(Phase::communication)].in_operations, 0);
    EXPECT_EQ(p.phases[size_t(Phase::other)].in_operations, 0);
  });
}

TEST(ProfilingComm, ASplitGroupOfAnotherThreadIsBeside) {
  run_local_ranks(2, [](Comm& plain) {
    Profile profile(plain.rank());
    ProfilingComm comm(plain, profile);
    {
      const ProfileStep step(1);
      const std::unique_ptr<Comm> group = comm.split(0, -comm.rank());
      std::thread([&] { EXPECT_EQ(gather_values(*group, int64_t(comm.rank())), (std::vector<int64_t>{1, 0})); }).join();
    }
    const StepProfile p = profile.average();
    EXPECT_TRUE(p.operations.empty());
    EXPECT_EQ(by_name(p.beside)["all_gather"].calls, 1);
  });
}

}  // namespace
}  // namespace tessera
