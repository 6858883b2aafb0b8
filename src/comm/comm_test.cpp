#include "comm/comm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"

namespace tessera {
namespace {

// Cuts [0, n) into uneven parts; some are empty.
std::vector<Range> cut(size_t n, int ranks, uint64_t seed) {
  const Rng rng(seed, Purpose::sample, "cut");
  std::vector<size_t> ends;
  for (int r = 1; r < ranks; ++r) ends.push_back(rng.below(uint64_t(r), n + 1));
  ends.push_back(n);
  std::sort(ends.begin(), ends.end());
  std::vector<Range> parts;
  for (size_t r = 0; r < ends.size(); ++r) parts.push_back({r ? ends[r - 1] : 0, ends[r]});
  return parts;
}

std::byte byte_of(size_t i, uint64_t seed) { return std::byte(i * 31 + i / 251 + seed * 7); }

std::vector<float> addend(size_t n, int which) {
  const Rng rng(uint64_t(which), Purpose::sample, "addend");
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = rng.normal(i) * (i % 3 ? 1.0f : 1000.0f);
  return x;
}

void check_gather(Comm& comm, size_t n, uint64_t seed) {
  const auto parts = cut(n, comm.size(), seed);
  std::vector<std::byte> buffer(n, std::byte(0xee));
  const Range mine = parts[comm.rank()];
  for (size_t i = mine.begin; i < mine.end; ++i) buffer[i] = byte_of(i, seed);
  comm.all_gather(buffer.data(), parts);
  size_t wrong = 0;
  for (size_t i = 0; i < n; ++i) wrong += buffer[i] != byte_of(i, seed);
  EXPECT_EQ(wrong, 0u) << n << " bytes";
}

// Two reductions into one sum equal the serial sum in rank order, bit for bit.
void check_sum(Comm& comm, size_t n, uint64_t seed) {
  const auto parts = cut(n, comm.size(), seed);
  const Range mine = parts[comm.rank()];
  std::vector<float> sum(mine.size(), 0.5f), serial(n, 0.5f);
  for (int round = 0; round < 2; ++round) {
    comm.reduce_scatter(sum.data(), addend(n, round * comm.size() + comm.rank()).data(), parts);
    for (int r = 0; r < comm.size(); ++r) {
      const auto x = addend(n, round * comm.size() + r);
      for (size_t i = 0; i < n; ++i) serial[i] += x[i];
    }
  }
  const bool same_bits = mine.size() == 0 || std::memcmp(sum.data(), serial.data() + mine.begin, mine.size() * sizeof(float)) == 0;
  EXPECT_TRUE(same_bits) << n << " elements";
}

void check_small_values(Comm& comm) {
  const int64_t n = comm.size();
  EXPECT_EQ(sum_of(comm, comm.rank() + 1), n * (n + 1) / 2);
  const auto halves = gather_values(comm, 0.5 * comm.rank());
  const auto names = gather_strings(comm, std::string(size_t(comm.rank()), 'x') + str(comm.rank()));
  ASSERT_EQ(int64_t(halves.size()), n);
  ASSERT_EQ(int64_t(names.size()), n);
  for (int r = 0; r < n; ++r) {
    EXPECT_EQ(halves[r], 0.5 * r);
    EXPECT_EQ(names[r], std::string(size_t(r), 'x') + str(r));
  }
}

void check_broadcast(Comm& comm) {
  for (int root = 0; root < comm.size(); ++root) {
    int64_t v = comm.rank() == root ? 1000 + root : 0;
    comm.broadcast(reinterpret_cast<std::byte*>(&v), sizeof v, root);
    EXPECT_EQ(v, 1000 + root);
  }
}

void check_split(Comm& comm) {
  const auto reversed = comm.split(0, -comm.rank());
  EXPECT_EQ(reversed->size(), comm.size());
  EXPECT_EQ(reversed->rank(), comm.size() - 1 - comm.rank());
  const auto half = comm.split(comm.rank() % 2, 0);
  EXPECT_EQ(half->rank(), comm.rank() / 2);
  int64_t expected = 0;
  for (int r = comm.rank() % 2; r < comm.size(); r += 2) expected += r;
  EXPECT_EQ(sum_of(*half, comm.rank()), expected);
}

// A second thread of each rank uses its own group while this one uses comm.
void check_two_threads(Comm& comm) {
  const auto own = comm.split(0, comm.rank());
  std::thread second([&] {
    for (uint64_t i = 0; i < 20; ++i) check_gather(*own, 5000 + i, i);
  });
  for (uint64_t i = 0; i < 20; ++i) check_sum(comm, 300 + i, i);
  second.join();
}

void check_window(Comm& comm) {
  const size_t n = 3 * 4096 + 256;
  {
    const auto window = comm.shared_window(n);
    ASSERT_EQ(window.bytes(), n);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(window.data()) % 4096, 0u);
    size_t wrong = 0;
    for (size_t i = 0; i < n; ++i) wrong += window.data()[i] != std::byte(0);
    comm.barrier();
    const Range mine = cut(n, comm.size(), 3)[comm.rank()];
    for (size_t i = mine.begin; i < mine.end; ++i) window.data()[i] = byte_of(i, 3);
    comm.barrier();
    for (size_t i = 0; i < n; ++i) wrong += window.data()[i] != byte_of(i, 3);
    EXPECT_EQ(wrong, 0u);
  }
  EXPECT_EQ(comm.shared_window(0).bytes(), 0u);
}

void check_all(Comm& comm) {
  EXPECT_EQ(comm.nodes(), 1);
  EXPECT_EQ(comm.node(), 0);
  for (const size_t n : {0, 1, 3, 1000, 300'000}) check_gather(comm, n, n);
  for (const size_t n : {0, 1, 3, 1000, 40'000}) check_sum(comm, n, n);
  check_small_values(comm);
  check_broadcast(comm);
  check_split(comm);
  check_two_threads(comm);
  check_window(comm);
}

TEST(Single, Everything) {
  const auto comm = make_single_comm();
  EXPECT_EQ(comm->describe(), "single, 1 rank");
  check_all(*comm);
  EXPECT_EXIT(comm->abort(3), testing::ExitedWithCode(3), "");
}

class Local : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Local, testing::Values(1, 2, 3, 4, 7));

TEST_P(Local, Everything) {
  run_local_ranks(GetParam(), [](Comm& comm) { check_all(comm); });
}

// Every rank gives a different sign and magnitude, so that any other order of the sum would show.
TEST_P(Local, SumFollowsRankOrder) {
  run_local_ranks(GetParam(), [](Comm& comm) {
    const std::vector<Range> parts = cut(1, comm.size(), 1);
    const float values[] = {1e8f, 1.0f, -1e8f, 3.0f, 1e-3f, -5e7f, 0.25f};
    float sum = 0, serial = 0;
    comm.reduce_scatter(&sum, &values[comm.rank()], parts);
    for (int r = 0; r < comm.size(); ++r) serial += values[r];
    EXPECT_EQ(sum, parts[comm.rank()].size() ? serial : 0.0f);
  });
}

std::string message_of(int ranks, const std::function<void(Comm&)>& f) {
  try {
    run_local_ranks(ranks, f);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

TEST(LocalErrors, OneRankEndsAllAndItsMessageIsKept) {
  EXPECT_EQ(message_of(4,
                       [](Comm& comm) {
                         const auto own = comm.split(0, comm.rank());
                         if (comm.rank() == 2) throw Error("the cause");
                         comm.rank() % 2 ? comm.barrier() : own->barrier();
                       }),
            "the cause");
}

TEST(LocalErrors, ErrorsInTheMiddleOfExchanges) {
  for (int i = 0; i < 30; ++i) {
    std::atomic<int> ended = 0;
    const auto text = message_of(3, [&](Comm& comm) {
      const std::vector<Range> parts = cut(64, 3, 1);
      struct Count {
        std::atomic<int>& n;
        ~Count() { ++n; }
      } count{ended};
      for (int k = 0;; ++k) {
        std::vector<float> x(64), sum(64);
        if (comm.rank() == i % 3 && k == i / 3) throw Error("the cause");
        comm.reduce_scatter(sum.data(), x.data(), parts);
      }
    });
    EXPECT_EQ(text, "the cause");
    EXPECT_EQ(ended, 3);
  }
}

TEST(LocalErrors, AbortWakesTheOthers) {
  EXPECT_EQ(message_of(3,
                       [](Comm& comm) {
                         if (comm.rank() == 1) comm.abort(7);
                         comm.barrier();
                       }),
            "rank 1 ended the run with exit code 7");
}

TEST(LocalErrors, InterruptEndsOneGroupOnly) {
  run_local_ranks(2, [](Comm& comm) {
    const auto own = comm.split(0, comm.rank());
    std::thread second([&] { EXPECT_THROW(own->all_gather(nullptr, std::vector<Range>(2)), Error); });
    own->interrupt();
    second.join();
    EXPECT_EQ(sum_of(comm, 1), 2);
  });
}

// Cases named Mpi run under mpiexec (tests/CMakeLists.txt), one process per rank. An error ends every process.
void as_mpi_rank(const std::function<void(Comm&)>& f) {
  const auto comm = make_mpi_comm();
  try {
    f(*comm);
    comm->barrier();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "[rank %d] %s\n", comm->rank(), e.what());
    comm->abort(1);
  }
}

class Mpi : public testing::Test {
 protected:
  void SetUp() override {
    if (!started_by_mpi()) GTEST_SKIP() << "skipped: not started by mpiexec";
  }
};

TEST_F(Mpi, Everything) {
  as_mpi_rank([](Comm& comm) {
    const std::string n = str(comm.size(), comm.size() == 1 ? " rank" : " ranks");
    EXPECT_TRUE(starts_with(comm.describe(), "mpi (MPICH ")) << comm.describe();
    EXPECT_TRUE(ends_with(comm.describe(), "), " + n + " on 1 node")) << comm.describe();
    check_all(comm);
  });
}

TEST_F(Mpi, LargeSumInPieces) {
  as_mpi_rank([](Comm& comm) { check_sum(comm, 2'000'000, 5); });
}

TEST_F(Mpi, LargeGather) {
  as_mpi_rank([](Comm& comm) { check_gather(comm, size_t(64) << 20, 5); });
}

}  // namespace
}  // namespace tessera
