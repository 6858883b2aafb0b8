// What NcclComm makes of errors, over a NCCL of ours (comm/fake_nccl_test.h).
#include "comm/nccl.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "comm/fake_nccl_test.h"
#include "core/activity.h"
#include "core/error.h"
#include "core/text.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "\"" << part << "\" is not in:\n" << text;
}

struct Rank {
  explicit Rank(Comm& host) : backend(make_test_backend("cuda_host", 1)) {
    FakeNccl::serve(*backend);
    memory = backend->reserve(1024, "test");
    comm = make_nccl_comm(host, *backend, library);
  }
  void gather() {
    std::vector<Range> parts;
    for (size_t r = 0; r < size_t(comm->size()); ++r) parts.push_back({r * 16, (r + 1) * 16});
    comm->all_gather(memory.data(), parts);
  }
  const NcclLibrary library = FakeNccl::library();
  std::unique_ptr<Backend> backend;
  Buffer memory;
  std::unique_ptr<Comm> comm;
};

// Exchanges go on until one throws.
std::string lost_text(Rank& rank) {
  for (int i = 0; i < 500; ++i) {
    try {
      rank.gather();
    } catch (const RankLost& e) {
      return e.what();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return "no rank was lost";
}

struct Nccl : testing::Test {
  FakeNccl nccl;
};

TEST_F(Nccl, GroupsEndTogether) {
  run_local_ranks(3, [](Comm& host) {
    Rank rank(host);
    for (int i = 0; i < 50; ++i) rank.gather();
    EXPECT_EQ(rank.comm->describe(), "local threads, 3 ranks, NCCL 2.28.9");
    host.barrier();
  });
  EXPECT_EQ(nccl.faults.destroyed, 3);
  EXPECT_EQ(nccl.faults.aborted, 0);
}

TEST_F(Nccl, ASumTakesNoMoreThanWasSaid) {
  run_local_ranks(3, [](Comm& host) {
    Rank rank(host);
    const Buffer sum = rank.backend->reserve(4000, "test"), x = rank.backend->reserve(12000, "test");
    const size_t before = rank.backend->ledger().used();
    rank.comm->reduce_scatter(reinterpret_cast<float*>(sum.data()), reinterpret_cast<float*>(x.data()),
                              std::vector<Range>{{0, 1000}, {1000, 2000}, {2000, 3000}});
    EXPECT_LE(rank.backend->ledger().used(), before + device_exchange_bytes(3, 1000));
    EXPECT_EQ(device_exchange_bytes(3, 1000), 2 * 1000 * sizeof(float));
    EXPECT_EQ(device_exchange_bytes(3, size_t(1) << 30), size_t(2) * 2 * (16 << 20));  // two others, two rounds, 16 MiB each
    host.barrier();
  });
}

// All ranks start; from then on every call tells this result.
TEST_F(Nccl, AFailedCallNamesItAndItsReason) {
  try {
    run_local_ranks(2, [&](Comm& host) {
      Rank rank(host);
      host.barrier();
      nccl.faults.call_result = 2;
      rank.gather();
    });
    FAIL() << "no error";
  } catch (const RankLost& e) {
    expect_part(e.what(), "NCCL, rank ");
    expect_part(e.what(), ": ncclAllGather: unhandled system error (the cable was pulled)");
    expect_part(e.what(), "do this: ");
  }
  EXPECT_EQ(nccl.faults.aborted, 2);
}

TEST_F(Nccl, AGroupThatDoesNotStartIsNoLostRank) {
  nccl.faults.init_result = 5;
  try {
    run_local_ranks(2, [&](Comm& host) { Rank rank(host); });
    FAIL() << "no error";
  } catch (const RankLost&) {
    FAIL() << "a restart would not help";
  } catch (const Error& e) {
    expect_part(e.what(), "ncclCommInitRank: another error (the cable was pulled)");
  }
}

TEST_F(Nccl, AnErrorWhileAnExchangeIsUnderWayEndsTheGroup) {
  std::string text;
  EXPECT_THROW(run_local_ranks(2,
                               [&](Comm& host) {
                                 Rank rank(host);
                                 host.barrier();
                                 nccl.faults.nothing_moves = true;
                                 nccl.faults.async_error = 6;
                                 const std::string mine = lost_text(rank);
                                 host.barrier();
                                 if (host.rank() == 0) text = mine;
                                 throw RankLost(mine);
                               }),
               RankLost);
  expect_part(text, "NCCL, rank 0: an exchange that was under way: another error");
  EXPECT_EQ(nccl.faults.aborted, 2);
}

// Rank 1 does not come to an exchange that rank 0 has given to its GPU, which would wait for ever.
TEST_F(Nccl, ARankThatDoesNotComeIsNamed) {
  std::string text;
  std::atomic<bool> found = false;
  EXPECT_THROW(run_local_ranks(2,
                               [&](Comm& host) {
                                 host.set_deadline(0.2);
                                 Rank rank(host);
                                 host.barrier();
                                 nccl.faults.nothing_moves = true;
                                 if (host.rank() == 0) {
                                   const Doing phase(Activity::backward);
                                   text = lost_text(rank);
                                   found = true;
                                   throw RankLost(text);
                                 }
                                 const Doing phase(Activity::loading);
                                 while (!found) std::this_thread::yield();
                               }),
               RankLost);
  expect_part(text, "rank 1: did not come to exchange ");
  expect_part(text, " of the GPUs within 0.2 s; last seen: rank 1 in phase loading; waiting: rank 0 in phase backward");
}

// All ranks have given it; the GPU does not end it.
TEST_F(Nccl, AnExchangeThatStandsStillIsEnded) {
  std::string text;
  EXPECT_THROW(run_local_ranks(2,
                               [&](Comm& host) {
                                 host.set_deadline(0.2);
                                 Rank rank(host);
                                 host.barrier();
                                 nccl.faults.nothing_moves = nccl.faults.stream_busy = true;
                                 rank.gather();
                                 while (nccl.faults.aborted < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                                 const std::string mine = lost_text(rank);
                                 host.barrier();
                                 if (host.rank() == 0) text = mine;
                                 throw RankLost(mine);
                               }),
               RankLost);
  expect_part(text, "of the GPUs: takes longer than 0.2 s although every rank has begun it");
}

TEST_F(Nccl, InterruptEndsWhatWaits) {
  EXPECT_THROW(run_local_ranks(2,
                               [&](Comm& host) {
                                 Rank rank(host);
                                 host.barrier();
                                 nccl.faults.nothing_moves = true;
                                 if (host.rank() == 0) rank.comm->interrupt();
                                 rank.gather();
                               }),
               Error);
  EXPECT_EQ(nccl.faults.aborted, 2);
}

// On the machine's own library, where there is one: it needs no GPU to tell its version.
TEST(NcclLibrary, IsFoundOrSaidToBeMissing) {
  std::string why;
  const NcclLibrary* const library = find_nccl(why);
  if (!library) {
    EXPECT_EQ(nccl_version(), "not found: " + why);
    EXPECT_NE(why, "");
    return;
  }
  EXPECT_EQ(why, "");
  EXPECT_TRUE(starts_with(nccl_version(), "2.")) << nccl_version();
}

TEST(NcclLibrary, TextOfAVersion) {
  EXPECT_EQ(nccl_version_text(22809), "2.28.9");
  EXPECT_EQ(nccl_version_text(21805), "2.18.5");
  EXPECT_EQ(nccl_version_text(2708), "2.7.8");
}

}  // namespace
}  // namespace tessera
