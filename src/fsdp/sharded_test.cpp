#include "fsdp/sharded.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <set>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"

namespace tessera {
namespace {

// Uneven, smaller than the number of ranks, without frozen bytes, without trainable values; the root is last and stays.
const std::vector<UnitSize> uneven = {{256 * 37, 64 * 5},       {256, 64}, {0, 640}, {256 * 6, 0}, {256 * 100, 64 * 33}, {256 * 3, 64 * 3},
                                      {256 * 20, 64 * 20, true}};
const char* const strategies[] = {"full_shard", "shard_grad_op", "ddp"};
constexpr FrozenPlace places[] = {FrozenPlace::automatic, FrozenPlace::gathered};

std::byte frozen_byte(int unit, size_t i) { return std::byte(unit * 53 + int(i * 7 + i / 255)); }
float value(int unit, size_t i, int version) { return float(unit) + float(i) * 0.0123f - float(version) * 0.77f; }

void set_values(Sharded& sharded, int version) {
  for (int u = 0; u < sharded.units(); ++u) {
    const Range mine = sharded.trainable_range(u);
    for (size_t i = mine.begin; i < mine.end; ++i) sharded.values(u).as<float>()[i - mine.begin] = value(u, i, version);
  }
}

void load(Sharded& sharded) {
  for (int u = 0; u < sharded.units(); ++u) {
    const Range mine = sharded.frozen_range(u);
    for (size_t i = mine.begin; i < mine.end; ++i) sharded.frozen_shard(u)[i - mine.begin] = frozen_byte(u, i);
  }
  set_values(sharded, 0);
  sharded.loaded();
}

template <class T>
size_t wrong_values(const std::byte* data, int unit, size_t n, int version) {
  size_t wrong = 0;
  for (size_t i = 0; i < n; ++i) {
    const T expected = value(unit, i, version);
    wrong += std::memcmp(data + i * sizeof(T), &expected, sizeof(T)) != 0;
  }
  return wrong;
}

size_t wrong_bytes(const Sharded::View& view, const UnitSize& size, int unit, Dtype compute, int version) {
  size_t wrong = 0;
  for (size_t i = 0; i < size.frozen_bytes; ++i) wrong += view.frozen[i] != frozen_byte(unit, i);
  return wrong + (compute == Dtype::bf16 ? wrong_values<Bf16>(view.trainable, unit, size_t(size.trainable), version)
                                         : wrong_values<float>(view.trainable, unit, size_t(size.trainable), version));
}

// Forward and backward over all units, the root held throughout and acquired three times, as a training step does.
void check_pass(Sharded& sharded, const std::vector<UnitSize>& sizes, Dtype compute, int version) {
  const int root = sharded.units() - 1;
  const auto check = [&](int unit) {
    EXPECT_EQ(wrong_bytes(sharded.acquire(unit), sizes[size_t(unit)], unit, compute, version), 0u) << "unit " << unit;
  };
  check(root);
  sharded.prefetch(0);
  for (int l = 0; l < root; ++l) {
    sharded.prefetch(l + 1 < root ? l + 1 : -1);
    check(l);
    sharded.release(l, false);
  }
  check(root);
  sharded.prefetch(root - 1);
  for (int l = root - 1; l >= 0; --l) {
    sharded.prefetch(l - 1);
    check(l);
    sharded.release(l, true);
  }
  check(root);
  sharded.release(root, true);
}

void check_gathers(Comm& comm, Backend& backend) {
  for (const char* strategy : strategies)
    for (const FrozenPlace place : places)
      for (const Dtype compute : {Dtype::f32, Dtype::bf16}) {
        SCOPED_TRACE(str(strategy, place == FrozenPlace::gathered ? ", gathered" : ", automatic", compute == Dtype::f32 ? ", f32" : ""));
        Sharded sharded(comm, backend, find_strategy(strategy), uneven, compute, place);
        load(sharded);
        for (int version = 0; version < 3; ++version) {
          check_pass(sharded, uneven, compute, version);
          check_pass(sharded, uneven, compute, version);
          set_values(sharded, version + 1);
          sharded.refresh();
        }
      }
}

constexpr int micro_gradients = 12;
float micro_gradient(int which, int unit, size_t i) {
  return Rng(uint64_t(which), Purpose::sample, "gradient", uint64_t(unit)).normal(i) * (which % 5 == 0 ? 1e4f : 1.0f);
}

// The sums of all micro-gradients, spread as (rank, accumulation step), have the bits of the serial sum.
void check_reduce(Comm& comm, Backend& backend) {
  if (micro_gradients % comm.size()) return;
  for (const char* strategy : strategies) {
    Sharded sharded(comm, backend, find_strategy(strategy), uneven, Dtype::f32);
    for (int round = 0; round < 2; ++round) {
      sharded.zero_gradients();
      for (int first = 0; first < micro_gradients; first += comm.size())
        for (int u = sharded.units() - 1; u >= 0; --u) {
          const Tensor scratch = sharded.gradient(u);
          for (int64_t i = 0; i < scratch.size(); ++i) scratch.as<float>()[i] += micro_gradient(first + comm.rank(), u, size_t(i));
          sharded.reduce(u);
        }
    }
    for (int u = 0; u < sharded.units(); ++u) {
      const Range mine = sharded.trainable_range(u);
      size_t wrong = 0;
      for (size_t i = mine.begin; i < mine.end; ++i) {
        float serial = 0;
        for (int k = 0; k < micro_gradients; ++k) serial += micro_gradient(k, u, i);
        wrong += std::memcmp(&sharded.gradients(u).as<float>()[i - mine.begin], &serial, sizeof serial) != 0;
      }
      EXPECT_EQ(wrong, 0u) << strategy << ", unit " << u;
    }
  }
}

class LocalRanks : public testing::TestWithParam<int> {
 protected:
  static void on_ranks(const std::function<void(Comm&, Backend&)>& f) {
    run_local_ranks(GetParam(), [&](Comm& comm) {
      const auto backend = make_backend("cpu", 1);
      f(comm, *backend);
    });
  }
};
INSTANTIATE_TEST_SUITE_P(Sharded, LocalRanks, testing::Values(1, 2, 3, 4));

TEST_P(LocalRanks, AcquireGivesTheExactBytes) { on_ranks(check_gathers); }
TEST_P(LocalRanks, ReduceIsTheSerialSum) { on_ranks(check_reduce); }

TEST_P(LocalRanks, RangesCoverEachUnitOnce) {
  on_ranks([](Comm& comm, Backend& backend) {
    for (const char* strategy : strategies) {
      Sharded sharded(comm, backend, find_strategy(strategy), uneven, Dtype::f32);
      for (int u = 0; u < sharded.units(); ++u) {
        const Range frozen = sharded.frozen_range(u), owned = sharded.trainable_range(u);
        EXPECT_EQ(sum_of(comm, int64_t(frozen.size())), int64_t(uneven[u].frozen_bytes));
        EXPECT_EQ(sum_of(comm, sharded.counts_once(u) ? int64_t(owned.size()) : 0), uneven[u].trainable);
        EXPECT_EQ(frozen.begin % 256, 0u);
        EXPECT_EQ(owned.begin % 64, 0u);
        EXPECT_EQ(sharded.values(u).size(), int64_t(owned.size()));
      }
    }
  });
}

// A mark left in the gathered values of a unit is still there in the backward pass when the strategy keeps, and not when it drops.
TEST(Sharded, KeepingStrategiesDoNotGatherAgain) {
  const std::vector<UnitSize> sizes(5, {256, 256});
  for (const char* name : {"full_shard", "shard_grad_op"})
    run_local_ranks(2, [&](Comm& comm) {
      const auto backend = make_backend("cpu", 1);
      Sharded sharded(comm, *backend, find_strategy(name), sizes, Dtype::f32);
      load(sharded);
      std::set<std::byte*> places;
      for (int u = 0; u < 5; ++u) {
        std::byte* at = sharded.acquire(u).trainable;
        places.insert(at);
        at[0] = std::byte(0xa5 + u);
        sharded.release(u, false);
      }
      const bool keeps = find_strategy(name).keep_after_forward;
      EXPECT_EQ(sharded.acquire(0).trainable[0] == std::byte(0xa5), keeps) << name;
      EXPECT_EQ(places.size(), keeps ? 5u : 2u) << name;
      sharded.refresh();
      EXPECT_EQ(wrong_bytes(sharded.acquire(0), sizes[0], 0, Dtype::f32, 0), 0u) << name;
    });
}

// However much is prefetched, a unit stays in place from acquire to release.
TEST(Sharded, PrefetchLeavesAcquiredUnitsAlone) {
  const std::vector<UnitSize> sizes(6, {512, 256});
  run_local_ranks(2, [&](Comm& comm) {
    const auto backend = make_backend("cpu", 1);
    Sharded sharded(comm, *backend, find_strategy("full_shard"), sizes, Dtype::f32, FrozenPlace::gathered);
    load(sharded);
    const auto first = sharded.acquire(0);
    for (int u = 1; u < 6; ++u) sharded.prefetch(u);
    const auto second = sharded.acquire(2);
    for (int u = 0; u < 6; ++u) sharded.prefetch(u);
    EXPECT_EQ(wrong_bytes(sharded.acquire(2), sizes[2], 2, Dtype::f32, 0), 0u);
    EXPECT_EQ(wrong_bytes(first, sizes[0], 0, Dtype::f32, 0), 0u);
    EXPECT_EQ(wrong_bytes(second, sizes[2], 2, Dtype::f32, 0), 0u);
  });
}

// One rank: acquire points at the masters, and a change shows without a gather.
TEST(Sharded, OneRankCopiesNothing) {
  const auto comm = make_single_comm();
  const auto backend = make_backend("cpu", 1);
  Sharded sharded(*comm, *backend, find_strategy("full_shard"), uneven, Dtype::f32);
  for (const int u : {0, 1, 4, 6}) {
    EXPECT_EQ(sharded.acquire(u).trainable, sharded.values(u).as<std::byte>());
    EXPECT_EQ(sharded.acquire(u).frozen, sharded.frozen_shard(u));
  }
}

TEST(Sharded, GradientIsZeroedAfterReduceOnly) {
  const auto comm = make_single_comm();
  const auto backend = make_backend("cpu", 1);
  Sharded sharded(*comm, *backend, find_strategy("full_shard"), uneven, Dtype::f32);
  sharded.gradient(0).as<float>()[3] = 2;
  EXPECT_EQ(sharded.gradient(0).as<float>()[3], 2.0f);
  sharded.gradient(6).as<float>()[0] = 5;  // the root has a scratch of its own
  sharded.reduce(0);
  EXPECT_EQ(sharded.gradient(0).as<float>()[3], 0.0f);
  EXPECT_EQ(sharded.gradients(0).as<float>()[3], 2.0f);
  sharded.reduce(3);  // nothing trains in unit 3
  EXPECT_EQ(sharded.gradient(6).as<float>()[0], 5.0f);
}

// One rank: the first gradient of a step is added to the sum where it stands, later ones are sums of their own; with more ranks none is.
TEST(Sharded, OneRankAddsTheFirstGradientToItsSum) {
  for (const int ranks : {1, 2})
    for (const char* strategy : strategies)
      run_local_ranks(ranks, [&](Comm& comm) {
        const auto backend = make_backend("cpu", 1);
        Sharded sharded(comm, *backend, find_strategy(strategy), uneven, Dtype::bf16);
        for (int step = 0; step < 3; ++step) {
          sharded.zero_gradients();
          for (int micro = 0; micro < 3; ++micro)
            for (const int u : {4, 6, 0}) {
              const Tensor gradient = sharded.gradient(u);
              EXPECT_EQ(gradient.data == sharded.gradients(u).data, ranks == 1 && micro == 0) << strategy << ", unit " << u;
              for (int64_t i = 0; i < gradient.size(); ++i) ASSERT_EQ(gradient.as<float>()[i], 0) << strategy << ", unit " << u;
              gradient.as<float>()[70 % gradient.size()] += 1;
              sharded.reduce(u);
            }
        }
        double sum = 0;
        for (const int u : {4, 6, 0})
          for (int64_t i = 0; sharded.counts_once(u) && i < sharded.gradients(u).size(); ++i) sum += sharded.gradients(u).as<float>()[i];
        EXPECT_EQ(sum_of(comm, int64_t(sum)), 3 * 3 * ranks);
      });
}

// What was summed before counts as zero, whether the sum is looked at, added to, or neither before it is cleared again.
TEST_P(LocalRanks, ZeroedSumsAreZero) {
  on_ranks([](Comm& comm, Backend& backend) {
    for (const char* strategy : strategies) {
      Sharded sharded(comm, backend, find_strategy(strategy), uneven, Dtype::f32);
      const auto add_one = [&](int u) {
        const Tensor gradient = sharded.gradient(u);
        for (int64_t i = 0; i < gradient.size(); ++i) gradient.as<float>()[i] += 1;
        sharded.reduce(u);
      };
      const auto expect_all = [&](int u, float value) {
        const Tensor sum = sharded.gradients(u), squares = sharded.square_sums(u);
        ASSERT_EQ(squares.size() * 64, sum.size());
        for (int64_t i = 0; i < squares.size(); ++i) ASSERT_EQ(squares.as<double>()[i], 64.0 * value * value) << strategy << ", unit " << u;
        for (int64_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum.as<float>()[i], value) << strategy << ", unit " << u;
      };
      for (const int u : {0, 4, 6}) expect_all(u, 0), add_one(u);
      expect_all(6, float(comm.size()));
      sharded.zero_gradients();
      expect_all(0, 0);
      sharded.reduce(4);  // of a rank that had nothing to add
      expect_all(4, 0);
      sharded.zero_gradients();
      for (const int u : {0, 4, 6}) add_one(u), add_one(u);
      for (const int u : {0, 4, 6}) expect_all(u, float(2 * comm.size()));
    }
  });
}

// The owned part of what acquire gives, in the compute dtype; writing it together with the values is as good as refresh().
TEST_P(LocalRanks, CopiesAreWhatComputeSees) {
  on_ranks([](Comm& comm, Backend& backend) {
    for (const char* strategy : strategies) {
      Sharded plain(comm, backend, find_strategy(strategy), uneven, Dtype::f32);
      EXPECT_TRUE(plain.copies(0).empty());
      Sharded sharded(comm, backend, find_strategy(strategy), uneven, Dtype::bf16);
      load(sharded);
      check_pass(sharded, uneven, Dtype::bf16, 0);
      set_values(sharded, 1);
      for (int u = 0; u < sharded.units(); ++u) {
        const Tensor values = sharded.values(u), copies = sharded.copies(u);
        ASSERT_EQ(copies.size(), values.size());
        for (int64_t i = 0; i < values.size(); ++i) copies.as<Bf16>()[i] = Bf16(values.as<float>()[i]);
      }
      sharded.updated();
      check_pass(sharded, uneven, Dtype::bf16, 1);
    }
  });
}

// All ranks of a node together hold the frozen bytes once; gathered, each adds two buffers of the largest unit and one for the root.
TEST(Sharded, BytesCountWhatIsHeld) {
  const std::vector<UnitSize> frozen_only = {{256 * 40, 0}, {256 * 80, 0}, {256 * 120, 0}, {256 * 60, 0, true}};
  run_local_ranks(3, [&](Comm& comm) {
    const auto backend = make_backend("cpu", 1);
    const Sharded shared(comm, *backend, find_strategy("full_shard"), frozen_only, Dtype::bf16);
    EXPECT_EQ(sum_of(comm, int64_t(shared.bytes())), 256 * 300);
    const Sharded gathered(comm, *backend, find_strategy("full_shard"), frozen_only, Dtype::bf16, FrozenPlace::gathered);
    EXPECT_EQ(sum_of(comm, int64_t(gathered.bytes())), 256 * 300 + 3 * 256 * (2 * 120 + 60));
  });
  run_local_ranks(2, [&](Comm& comm) {
    const auto backend = make_backend("cpu", 1);
    const std::vector<UnitSize> trains = {{0, 1280}, {0, 1280}, {0, 1280}};
    const Sharded full(comm, *backend, find_strategy("full_shard"), trains, Dtype::bf16);
    EXPECT_EQ(full.bytes(), size_t(3 * 640 * (4 + 4 + 2) + 3 * 10 * 8 + 2 * 1280 * 2 + 1280 * 4));
    const Sharded ddp(comm, *backend, find_strategy("ddp"), trains, Dtype::f32);
    EXPECT_EQ(ddp.bytes(), size_t(3 * 1280 * (4 + 4) + 3 * 20 * 8 + 1280 * 4));
  });
}

TEST(Sharded, AnErrorOnOneRankEndsAll) {
  for (int i = 0; i < 12; ++i) {
    std::string text;
    try {
      run_local_ranks(3, [&](Comm& comm) {
        const auto backend = make_backend("cpu", 1);
        Sharded sharded(comm, *backend, find_strategy("full_shard"), uneven, Dtype::f32, FrozenPlace::gathered);
        load(sharded);
        for (int u = 0; u < 6; ++u) {
          sharded.prefetch(u + 1);
          if (comm.rank() == i % 3 && u == i / 3) throw Error("the cause");
          sharded.acquire(u);
          sharded.release(u, true);
          sharded.reduce(u);
        }
        comm.barrier();
      });
    } catch (const Error& e) {
      text = e.what();
    }
    EXPECT_EQ(text, "the cause");
  }
}

// Cases named Mpi run under mpiexec (tests/CMakeLists.txt), one process per rank. An error ends every process.
class Mpi : public testing::Test {
 protected:
  void SetUp() override {
    if (!started_by_mpi()) GTEST_SKIP() << "skipped: not started by mpiexec";
  }
  static void as_rank(const std::function<void(Comm&, Backend&)>& f) {
    const auto comm = make_mpi_comm();
    try {
      const auto backend = make_backend("cpu", 1);
      f(*comm, *backend);
      comm->barrier();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "[rank %d] %s\n", comm->rank(), e.what());
      comm->abort(1);
    }
  }
};

TEST_F(Mpi, AcquireGivesTheExactBytes) { as_rank(check_gathers); }
TEST_F(Mpi, ReduceIsTheSerialSum) { as_rank(check_reduce); }

// Started apart from the other cases: passes when the message comes and nothing hangs.
class MpiEnds : public Mpi {};

TEST_F(MpiEnds, AnErrorOnOneRankEndsAll) {
  as_rank([](Comm& comm, Backend& backend) {
    const std::vector<UnitSize> sizes(8, {size_t(1) << 22, 64000});
    Sharded sharded(comm, backend, find_strategy("full_shard"), sizes, Dtype::f32, FrozenPlace::gathered);
    for (int u = 0; u < 8; ++u) {
      sharded.prefetch(u);
      if (comm.rank() == 1 && u == 3) throw Error("the cause");
      sharded.acquire(u);
      sharded.release(u, true);
      sharded.reduce(u);
    }
  });
}

}  // namespace
}  // namespace tessera
