// Exchanges of device memory: StagedComm as it is, NcclComm over a NCCL of ours, both on the test device whose lanes run in any order that
// moments allow.
#include "comm/device_comm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "comm/fake_nccl_test.h"
#include "comm/nccl.h"
#include "comm/staged.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

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

std::vector<Range> equal(size_t n, int ranks) {
  std::vector<Range> parts;
  for (size_t r = 0; r < size_t(ranks); ++r) parts.push_back({r * n, (r + 1) * n});
  return parts;
}

std::byte byte_of(size_t i, uint64_t seed) { return std::byte(i * 31 + i / 251 + seed * 7); }

std::vector<float> addend(size_t n, int which) {
  const Rng rng(uint64_t(which), Purpose::sample, "addend");
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = rng.normal(i) * (i % 3 ? 1.0f : 1000.0f);
  return x;
}

struct Case {
  const char* kind;
  int ranks;
};

// One rank: its device, and the group on it.
struct Rank {
  Rank(const std::string& kind, Comm& host, uint64_t seed)
      : host(host), backend(make_test_backend("cuda_host", 1, seed * 17 + uint64_t(host.rank()))), library(FakeNccl::library()) {
    library.round_floats = 1000;
    FakeNccl::serve(*backend);
    comm = kind == "nccl" ? make_nccl_comm(host, *backend, library) : make_device_comm(host, *backend);
    if (!comm && kind == "staged") comm = std::make_unique<StagedComm>(host, *backend);
  }
  Buffer filled(const std::vector<std::byte>& bytes) {
    Buffer b = backend->reserve(std::max<size_t>(bytes.size(), 1), "test");
    backend->copy(b.data(), bytes.data(), bytes.size());
    return b;
  }
  std::vector<std::byte> read(const void* data, size_t bytes) {
    std::vector<std::byte> host_bytes(bytes);
    backend->copy(host_bytes.data(), data, bytes);
    return host_bytes;
  }

  Comm& host;
  std::unique_ptr<Backend> backend;
  NcclLibrary library;
  std::unique_ptr<Comm> comm;
};

enum class Mine { in_place, on_device, on_host };

void check_gather(Rank& r, const std::vector<Range>& parts, uint64_t seed, Mine place) {
  const size_t n = parts.back().end;
  const Range own = parts[size_t(r.comm->rank())];
  std::vector<std::byte> start(n, std::byte(0xee)), mine, expected(n);
  for (size_t i = 0; i < n; ++i) expected[i] = byte_of(i, seed);
  mine.assign(expected.begin() + long(own.begin), expected.begin() + long(own.end));
  if (place == Mine::in_place) std::copy(mine.begin(), mine.end(), start.begin() + long(own.begin));
  const Buffer buffer = r.filled(start), elsewhere = r.filled(mine);
  if (place == Mine::in_place)
    r.comm->all_gather(buffer.data(), parts);
  else
    r.comm->all_gather_from(buffer.data(), parts, place == Mine::on_device ? elsewhere.data() : mine.data());
  r.backend->wait(Lane::compute, r.backend->now(Lane::exchange));
  EXPECT_TRUE(r.read(buffer.data(), n) == expected) << n << " bytes, " << int(place);
}

// Reductions into one sum, one after the other, equal the serial sum in rank order, bit for bit.
void check_sum(Rank& r, const std::vector<Range>& parts) {
  const size_t n = parts.back().end;
  const Range own = parts[size_t(r.comm->rank())];
  const auto bytes_of = [](const std::vector<float>& v) {
    const auto* begin = reinterpret_cast<const std::byte*>(v.data());
    return std::vector<std::byte>(begin, begin + v.size() * sizeof(float));
  };
  const Buffer sum = r.filled(bytes_of(std::vector<float>(own.size(), 0.5f))), x = r.filled(bytes_of(std::vector<float>(n)));
  std::vector<float> serial(n, 0.5f);
  for (int round = 0; round < 3; ++round) {
    const std::vector<float> mine = addend(n, round * r.comm->size() + r.comm->rank());
    r.backend->copy(x.data(), mine.data(), n * sizeof(float));
    r.comm->reduce_scatter(reinterpret_cast<float*>(sum.data()), reinterpret_cast<const float*>(x.data()), parts);
    for (int q = 0; q < r.comm->size(); ++q) {
      const std::vector<float> theirs = addend(n, round * r.comm->size() + q);
      for (size_t i = 0; i < n; ++i) serial[i] += theirs[i];
    }
  }
  const std::vector<float> expected(serial.begin() + long(own.begin), serial.begin() + long(own.end));
  EXPECT_TRUE(r.read(sum.data(), own.size() * sizeof(float)) == bytes_of(expected)) << n << " elements";
}

void check_all(Rank& r, uint64_t seed) {
  const int ranks = r.comm->size();
  for (const Mine place : {Mine::in_place, Mine::on_device, Mine::on_host}) {
    for (const size_t n : {0, 1, 3, 5000}) check_gather(r, cut(n, ranks, n + seed), n, place);
    check_gather(r, equal(700, ranks), seed, place);
  }
  for (const size_t n : {0, 1, 3, 900}) check_sum(r, cut(n, ranks, n + seed));
  check_sum(r, equal(2300, ranks));  // in three rounds
}

class DeviceComm : public testing::TestWithParam<Case> {
 protected:
  void on_ranks(uint64_t seed, const std::function<void(Rank&)>& f) {
    run_local_ranks(GetParam().ranks, [&](Comm& host) {
      Rank rank(GetParam().kind, host, seed);
      f(rank);
      host.barrier();
    });
  }
  FakeNccl nccl_;
};
INSTANTIATE_TEST_SUITE_P(Kinds, DeviceComm,
                         testing::Values(Case{"staged", 1}, Case{"staged", 2}, Case{"staged", 3}, Case{"staged", 4}, Case{"nccl", 1},
                                         Case{"nccl", 2}, Case{"nccl", 3}, Case{"nccl", 4}),
                         [](const auto& info) { return str(info.param.kind, info.param.ranks); });

TEST_P(DeviceComm, ExchangesOfDeviceMemory) {
  for (uint64_t seed = 1; seed <= 3; ++seed) on_ranks(seed, [&](Rank& r) { check_all(r, seed); });
}

TEST_P(DeviceComm, HostMemoryGoesThroughTheHostsGroup) {
  on_ranks(1, [](Rank& r) {
    const int n = r.comm->size();
    EXPECT_EQ(sum_of(*r.comm, r.comm->rank() + 1), n * (n + 1) / 2);
    float x = 1, sum = 0.25;
    std::vector<Range> parts(size_t(n), Range{0, 1});
    for (size_t q = 1; q < parts.size(); ++q) parts[q] = {1, 1};
    r.comm->reduce_scatter(&sum, &x, parts);
    EXPECT_EQ(sum, r.comm->rank() == 0 ? 0.25f + float(n) : 0.25f);
    r.comm->barrier();
  });
}

TEST_P(DeviceComm, Broadcast) {
  on_ranks(1, [](Rank& r) {
    for (int root = 0; root < r.comm->size(); ++root) {
      const Buffer b = r.filled(std::vector<std::byte>(100, std::byte(r.comm->rank())));
      r.comm->broadcast(b.data(), b.bytes(), root);
      r.backend->wait(Lane::compute, r.backend->now(Lane::exchange));
      EXPECT_TRUE(r.read(b.data(), 100) == std::vector<std::byte>(100, std::byte(root)));
    }
  });
}

TEST_P(DeviceComm, SplitGroups) {
  on_ranks(1, [](Rank& r) {
    const auto whole = std::move(r.comm);
    r.comm = whole->split(whole->rank() % 2, -whole->rank());
    EXPECT_EQ(r.comm->size(), (whole->size() + 1 - whole->rank() % 2) / 2);
    check_all(r, 5);
    r.comm = whole->split(0, whole->rank());
    check_gather(r, equal(64, r.comm->size()), 1, Mine::in_place);
  });
}

// A copy to the host that the compute lane or the exchange lane has waited for reads what stood there before the exchange.
TEST_P(DeviceComm, CopiesThatWereWaitedForComeFirst) {
  for (const Lane waits : {Lane::compute, Lane::exchange})
    for (uint64_t seed = 1; seed <= 20; ++seed)
      on_ranks(seed, [&](Rank& r) {
        const size_t n = size_t(r.comm->size());
        const std::vector<std::byte> start(n, std::byte(r.comm->rank()));
        const Buffer b = r.filled(start), before = r.backend->reserve_pinned(n, "test");
        r.backend->wait(Lane::to_host, r.backend->now(Lane::compute));
        r.backend->copy_beside(before.data(), b.data(), n);
        r.backend->wait(waits, r.backend->now(Lane::to_host));
        const auto mine = std::byte(0xee);  // of the host: it is copied into its place first
        r.comm->all_gather_from(b.data(), equal(1, r.comm->size()), &mine);
        r.backend->finish();
        EXPECT_TRUE(std::equal(start.begin(), start.end(), before.data())) << int(waits);
      });
}

// A consumer that does not wait for the exchange lane reads old data, at least now and then.
TEST_P(DeviceComm, AForgottenWaitShows) {
  if (GetParam().ranks == 1) GTEST_SKIP() << "skipped: nothing moves";
  int old = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed)
    on_ranks(seed, [&](Rank& r) {
      std::vector<std::byte> start(size_t(r.comm->size()), std::byte(0));
      start[size_t(r.comm->rank())] = std::byte(1);
      const Buffer b = r.filled(start);
      r.comm->all_gather(b.data(), equal(1, r.comm->size()));
      const bool seen = r.read(b.data(), start.size()) == std::vector<std::byte>(start.size(), std::byte(1));
      if (r.comm->rank() == 0 && !seen) ++old;
      r.backend->finish();
    });
  EXPECT_GT(old, 0);
}

TEST(MakeDeviceComm, OnlyWhereTheHostsGroupDoesNotServe) {
  run_local_ranks(2, [](Comm& host) {
    const auto cpu = make_test_backend("cpu", 1), device = make_test_backend("cuda_host", 1);
    EXPECT_EQ(make_device_comm(host, *cpu), nullptr);
    const auto comm = make_device_comm(host, *device);
    ASSERT_NE(comm, nullptr);
    EXPECT_EQ(comm->describe(), "local threads, 2 ranks, exchanges through host memory");
    const auto alone = host.split(host.rank(), 0);
    EXPECT_EQ(make_device_comm(*alone, *device), nullptr);
  });
}

}  // namespace
}  // namespace tessera
