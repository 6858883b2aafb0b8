#include "fsdp/sharded.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <set>

#include "comm/device_comm.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

// Uneven, smaller than the number of ranks, without frozen bytes, without trainable values; the root is last and stays.
const std::vector<UnitSize> uneven = {{256 * 37, 64 * 5},       {256, 64}, {0, 640}, {256 * 6, 0}, {256 * 100, 64 * 33}, {256 * 3, 64 * 3},
                                      {256 * 20, 64 * 20, true}};
const char* const strategies[] = {"full_shard", "shard_grad_op", "ddp"};
constexpr FrozenPlace places[] = {FrozenPlace::automatic, FrozenPlace::gathered, FrozenPlace::host};

std::byte frozen_byte(int unit, size_t i) { return std::byte(unit * 53 + int(i * 7 + i / 255)); }
float value(int unit, size_t i, int version) { return float(unit) + float(i) * 0.0123f - float(version) * 0.77f; }

template <class T>
void write(Backend& backend, void* to, const std::vector<T>& from) {
  if (!from.empty()) backend.copy(to, from.data(), from.size() * sizeof(T));
}

template <class T>
std::vector<T> read(Backend& backend, const void* from, size_t n) {
  std::vector<T> out(n);
  if (n) backend.copy(out.data(), from, n * sizeof(T));
  return out;
}

void set_values(Backend& backend, Sharded& sharded, int version) {
  for (int u = 0; u < sharded.units(); ++u) {
    const Range mine = sharded.trainable_range(u);
    std::vector<float> values;
    for (size_t i = mine.begin; i < mine.end; ++i) values.push_back(value(u, i, version));
    write(backend, sharded.values(u).data, values);
  }
}

void load(Backend& backend, Sharded& sharded) {
  for (int u = 0; u < sharded.units(); ++u) {
    const Range mine = sharded.frozen_range(u);
    std::vector<std::byte> bytes;
    for (size_t i = mine.begin; i < mine.end; ++i) bytes.push_back(frozen_byte(u, i));
    write(backend, sharded.frozen_shard(u), bytes);
  }
  set_values(backend, sharded, 0);
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

// What units were while they were acquired: copied in the order of the work, compared when all of it is done.
class Seen {
 public:
  Seen(Backend& backend, const std::vector<UnitSize>& sizes, Dtype compute) : backend_(backend), sizes_(sizes), compute_(compute) {}
  void copy(const Sharded::View& view, int unit) {
    const size_t frozen = sizes_[size_t(unit)].frozen_bytes, values = values_bytes(unit);
    places_.push_back({unit, backend_.reserve(frozen + values, "seen")});
    if (frozen) backend_.copy(places_.back().bytes.data(), view.frozen, frozen);
    if (values) backend_.copy(places_.back().bytes.data() + frozen, view.trainable, values);
  }
  void expect(int version) {
    for (const Place& p : places_) {
      const size_t frozen = sizes_[size_t(p.unit)].frozen_bytes, n = size_t(sizes_[size_t(p.unit)].trainable);
      const auto bytes = read<std::byte>(backend_, p.bytes.data(), frozen + values_bytes(p.unit));
      size_t wrong = 0;
      for (size_t i = 0; i < frozen; ++i) wrong += bytes[i] != frozen_byte(p.unit, i);
      EXPECT_EQ(wrong, 0u) << "frozen bytes of unit " << p.unit;
      const std::byte* values = bytes.data() + frozen;
      EXPECT_EQ(compute_ == Dtype::bf16 ? wrong_values<Bf16>(values, p.unit, n, version) : wrong_values<float>(values, p.unit, n, version),
                0u)
          << "values of unit " << p.unit;
    }
    places_.clear();
  }

 private:
  struct Place {
    int unit;
    Buffer bytes;
  };
  size_t values_bytes(int unit) const { return size_t(sizes_[size_t(unit)].trainable) * size_of(compute_); }
  Backend& backend_;
  const std::vector<UnitSize>& sizes_;
  const Dtype compute_;
  std::vector<Place> places_;
};

void expect_unit(Backend& backend, const Sharded::View& view, const std::vector<UnitSize>& sizes, int unit, Dtype compute, int version) {
  Seen seen(backend, sizes, compute);
  seen.copy(view, unit);
  seen.expect(version);
}

// Forward and backward over all units, the root held throughout and acquired three times, as a training step does.
void check_pass(Backend& backend, Sharded& sharded, const std::vector<UnitSize>& sizes, Dtype compute, int version) {
  const int root = sharded.units() - 1;
  Seen seen(backend, sizes, compute);
  const auto check = [&](int unit) { seen.copy(sharded.acquire(unit), unit); };
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
  seen.expect(version);
}

void check_gathers(Comm& comm, Backend& backend) {
  const auto host = make_backend("cpu", 1);
  for (const char* strategy : strategies)
    for (const FrozenPlace place : places)
      for (const Dtype compute : {Dtype::f32, Dtype::bf16})
        for (Backend* masters : {static_cast<Backend*>(nullptr), host.get()}) {
          if (masters && (backend.host_can_read() || place == FrozenPlace::gathered)) continue;
          SCOPED_TRACE(str(strategy, ", place ", int(place), compute == Dtype::f32 ? ", f32" : "", masters ? ", masters on the host" : ""));
          Sharded sharded(comm, backend, find_strategy(strategy), uneven, compute, place, masters);
          load(backend, sharded);
          for (int version = 0; version < 3; ++version) {
            check_pass(backend, sharded, uneven, compute, version);
            check_pass(backend, sharded, uneven, compute, version);
            set_values(backend, sharded, version + 1);
            sharded.refresh();
          }
        }
}

constexpr int micro_gradients = 12;
float micro_gradient(int which, int unit, size_t i) {
  return Rng(uint64_t(which), Purpose::sample, "gradient", uint64_t(unit)).normal(i) * (which % 5 == 0 ? 1e4f : 1.0f);
}

template <class F>
void add_to(Tensor sum, F&& term) {
  auto values = read<float>(*sum.home, sum.data, size_t(sum.size()));
  for (size_t i = 0; i < values.size(); ++i) values[i] += term(i);
  write(*sum.home, sum.data, values);
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
          add_to(scratch, [&](size_t i) { return micro_gradient(first + comm.rank(), u, i); });
          sharded.reduce(u);
        }
    }
    for (int u = 0; u < sharded.units(); ++u) {
      const Range mine = sharded.trainable_range(u);
      size_t wrong = 0;
      const auto sums = read<float>(backend, sharded.gradients(u).data, mine.size());
      for (size_t i = mine.begin; i < mine.end; ++i) {
        float serial = 0;
        for (int k = 0; k < micro_gradients; ++k) serial += micro_gradient(k, u, i);
        wrong += std::memcmp(&sums[i - mine.begin], &serial, sizeof serial) != 0;
      }
      EXPECT_EQ(wrong, 0u) << strategy << ", unit " << u;
    }
  }
}

struct Ranks {
  int ranks;
  const char* device;
  uint64_t seed;  // of the order in which a device's lanes run
};
std::vector<Ranks> all_ranks() {
  std::vector<Ranks> all;
  for (const char* device : test_devices())
    for (const int ranks : {1, 2, 3, 4}) {
      if (std::string(device) == "cuda" && ranks > 1) continue;  // NCCL wants a GPU for each
      for (uint64_t seed = 1; seed <= (std::string(device) == "cuda_host" ? 5u : 1u); ++seed) all.push_back({ranks, device, seed});
    }
  return all;
}

class LocalRanks : public testing::TestWithParam<Ranks> {
 protected:
  static void on_ranks(const std::function<void(Comm&, Backend&)>& f) {
    run_local_ranks(GetParam().ranks, [&](Comm& comm) {
      const auto backend = make_test_backend(GetParam().device, 1, GetParam().seed * 100 + uint64_t(comm.rank()));
      const auto device_comm = make_device_comm(comm, *backend);
      f(device_comm ? *device_comm : comm, *backend);
    });
  }
};
INSTANTIATE_TEST_SUITE_P(Sharded, LocalRanks, testing::ValuesIn(all_ranks()),
                         [](const auto& row) { return str(row.param.device, "_", row.param.ranks, "_seed", row.param.seed); });

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

// A group whose ranks stand on two nodes: the even ones and the odd ones.
class TwoNodes final : public Comm {
 public:
  explicit TwoNodes(Comm& comm) : comm_(comm) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  int node() const override { return comm_.rank() % 2; }
  int nodes() const override { return 2; }
  std::string describe() const override { return "two nodes"; }
  void all_gather(std::byte* b, std::span<const Range> p) override { comm_.all_gather(b, p); }
  void all_gather_from(std::byte* b, std::span<const Range> p, const std::byte* m) override { comm_.all_gather_from(b, p, m); }
  void reduce_scatter(float* s, const float* x, std::span<const Range> p) override { comm_.reduce_scatter(s, x, p); }
  void broadcast(std::byte* b, size_t n, int root) override { comm_.broadcast(b, n, root); }
  void barrier() override { comm_.barrier(); }
  std::unique_ptr<Comm> split(int color, int key) override { return comm_.split(color, key); }
  Buffer shared_window(size_t bytes) override { return comm_.shared_window(bytes); }
  void abort(int code) override { comm_.abort(code); }
  void interrupt() override { comm_.interrupt(); }

 private:
  Comm& comm_;
};

// On the host of each node the frozen weights stand once, whichever rank of which node has read them.
TEST_P(LocalRanks, EveryNodeGetsAllFrozenBytes) {
  if (GetParam().ranks < 2) GTEST_SKIP() << "skipped: one rank, one node";
  on_ranks([](Comm& comm, Backend& backend) {
    TwoNodes nodes(comm);
    Sharded sharded(nodes, backend, find_strategy("full_shard"), uneven, Dtype::f32, FrozenPlace::host);
    load(backend, sharded);
    check_pass(backend, sharded, uneven, Dtype::f32, 0);
  });
}

// A mark left in the gathered values of a unit is still there in the backward pass when the strategy keeps, and not when it drops.
TEST(Sharded, KeepingStrategiesDoNotGatherAgain) {
  const std::vector<UnitSize> sizes(5, {256, 256});
  for (const char* name : {"full_shard", "shard_grad_op"})
    run_local_ranks(2, [&](Comm& comm) {
      const auto backend = make_backend("cpu", 1);
      Sharded sharded(comm, *backend, find_strategy(name), sizes, Dtype::f32);
      load(*backend, sharded);
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
      expect_unit(*backend, sharded.acquire(0), sizes, 0, Dtype::f32, 0);
    });
}

// However much is prefetched, a unit stays in place from acquire to release.
TEST(Sharded, PrefetchLeavesAcquiredUnitsAlone) {
  const std::vector<UnitSize> sizes(6, {512, 256});
  run_local_ranks(2, [&](Comm& comm) {
    const auto backend = make_backend("cpu", 1);
    Sharded sharded(comm, *backend, find_strategy("full_shard"), sizes, Dtype::f32, FrozenPlace::gathered);
    load(*backend, sharded);
    const auto first = sharded.acquire(0);
    for (int u = 1; u < 6; ++u) sharded.prefetch(u);
    const auto second = sharded.acquire(2);
    for (int u = 0; u < 6; ++u) sharded.prefetch(u);
    expect_unit(*backend, sharded.acquire(2), sizes, 2, Dtype::f32, 0);
    expect_unit(*backend, first, sizes, 0, Dtype::f32, 0);
    expect_unit(*backend, second, sizes, 2, Dtype::f32, 0);
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
        add_to(sharded.gradient(u), [](size_t) { return 1.0f; });
        sharded.reduce(u);
      };
      const auto expect_all = [&](int u, float value) {
        const Tensor sum = sharded.gradients(u), squares = sharded.square_sums(u);
        ASSERT_EQ(squares.size() * 64, sum.size());
        for (const double s : read<double>(backend, squares.data, size_t(squares.size())))
          ASSERT_EQ(s, 64.0 * value * value) << strategy << ", unit " << u;
        for (const float s : read<float>(backend, sum.data, size_t(sum.size()))) ASSERT_EQ(s, value) << strategy << ", unit " << u;
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
      load(backend, sharded);
      check_pass(backend, sharded, uneven, Dtype::bf16, 0);
      set_values(backend, sharded, 1);
      for (int u = 0; u < sharded.units(); ++u) {
        const Tensor values = sharded.values(u), copies = sharded.copies(u);
        ASSERT_EQ(copies.size(), values.size());
        std::vector<Bf16> rounded;
        for (const float v : read<float>(backend, values.data, size_t(values.size()))) rounded.emplace_back(v);
        write(backend, copies.data, rounded);
      }
      sharded.updated();
      check_pass(backend, sharded, uneven, Dtype::bf16, 1);
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

// With the frozen bytes on the host a device holds two copies of ordinary units and one of the root, under every strategy.
TEST(Sharded, LedgersCountDeviceAndHost) {
  const std::vector<UnitSize> frozen_only = {{256 * 40, 0}, {256 * 80, 0}, {256 * 120, 0}, {256 * 60, 0, true}};
  for (const char* strategy : strategies)
    run_local_ranks(3, [&](Comm& comm) {
      const auto backend = make_test_backend("cuda_host", 1);
      const auto device_comm = make_device_comm(comm, *backend);
      {
        const Sharded host(*device_comm, *backend, find_strategy(strategy), frozen_only, Dtype::bf16, FrozenPlace::host);
        EXPECT_EQ(backend->ledger().used(), size_t(256 * (2 * 120 + 60))) << strategy;
        EXPECT_EQ(backend->host_ledger().used(), size_t(256 * 100)) << strategy;
      }
      const Sharded shards(*device_comm, *backend, find_strategy(strategy), frozen_only, Dtype::bf16);
      EXPECT_EQ(sum_of(comm, int64_t(backend->ledger().used())),
                256 * 300 + 3 * 256 * (find_strategy(strategy).keep_after_forward ? 300 : 2 * 120 + 60));
      EXPECT_EQ(backend->host_ledger().used(), 0u);
    });
}

TEST(Sharded, AnErrorOnOneRankEndsAll) {
  for (int i = 0; i < 12; ++i) {
    std::string text;
    try {
      run_local_ranks(3, [&](Comm& comm) {
        const auto backend = make_backend("cpu", 1);
        Sharded sharded(comm, *backend, find_strategy("full_shard"), uneven, Dtype::f32, FrozenPlace::gathered);
        load(*backend, sharded);
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
