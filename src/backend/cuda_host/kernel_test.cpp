// The machine that runs kernels on the host: its order of threads, its barriers, its lanes, and that it sees the mistakes it is there for.
#include "backend/cuda/device.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/error.h"
#include "testing/test_backend.h"

namespace tessera::cuda_host {
namespace {

std::string error_of(const Grid& grid, const std::function<void()>& thread) {
  try {
    run_blocks(grid, thread, 1);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(HostKernel, RunsEveryThreadOfEveryBlock) {
  std::vector<int> count(3 * 70);
  run_blocks(
      {dim3(3), dim3(70)}, [&] { ++count[blockIdx.x * blockDim.x + threadIdx.x]; }, 1);
  EXPECT_EQ(count, std::vector<int>(3 * 70, 1));
}

// Each thread reads what its neighbour wrote: right with a barrier, wrong in some order of threads without one.
std::vector<int> neighbours(bool barrier, uint64_t seed) {
  std::vector<int> out(64);
  run_blocks(
      {dim3(1), dim3(64), 64 * sizeof(int)},
      [&] {
        SharedMemory shared;
        int* const x = shared.take<int>(64);
        const int i = int(threadIdx.x);
        x[i] = i;
        if (barrier) __syncthreads();
        out[size_t(i)] = x[(i + 1) % 64];
      },
      seed);
  return out;
}

TEST(HostKernel, AMissingBarrierShows) {
  std::vector<int> right(64);
  for (int i = 0; i < 64; ++i) right[size_t(i)] = (i + 1) % 64;
  for (const uint64_t seed : {1, 2, 3}) {
    EXPECT_EQ(neighbours(true, seed), right);
    EXPECT_NE(neighbours(false, seed), right);
  }
}

TEST(HostKernel, SharedMemoryStartsAsNaN) {
  run_blocks(
      {dim3(2), dim3(1), 64},
      [] {
        SharedMemory shared;
        float* const x = shared.take<float>(16);
        for (int i = 0; i < 16; ++i) {
          EXPECT_TRUE(std::isnan(x[i]));
          x[i] = 1;
        }
      },
      1);
}

TEST(HostKernel, NamesTheMistake) {
  EXPECT_NE(error_of({dim3(1), dim3(64)},
                     [] {
                       if (threadIdx.x < 32) __syncthreads();
                     })
                .find("has ended"),
            std::string::npos);
  const auto two_barriers = [] {
    if (threadIdx.x < 32)
      __syncthreads();
    else
      __syncthreads();
  };
  EXPECT_NE(error_of({dim3(1), dim3(64)}, two_barriers).find("waits at"), std::string::npos);
  EXPECT_NE(error_of({dim3(1), dim3(32)},
                     [] {
                       if (threadIdx.x < 5) __shfl_xor_sync(whole_warp, 1.f, 1);
                     })
                .find("has ended"),
            std::string::npos);
  EXPECT_NE(error_of({dim3(1), dim3(32), 8}, [] { SharedMemory().take<float>(3); }).find("more shared memory"), std::string::npos);
  EXPECT_NE(error_of({dim3(1), dim3(1025)}, [] {}).find("1 to 1024"), std::string::npos);
  EXPECT_NE(error_of({dim3(1), dim3(32), 1024},
                     [] {
                       uint32_t r[4];
                       load_tiles(r, SharedMemory().take<std::byte>(1024) + 8);
                     })
                .find("multiple of 16"),
            std::string::npos);
}

TEST(HostKernel, SumsOverAWarpAndABlock) {
  run_blocks(
      {dim3(1), dim3(96), 3 * sizeof(float)},
      [] {
        SharedMemory shared;
        float* const warps = shared.take<float>(3);
        EXPECT_EQ(block_sum(float(threadIdx.x), warps), 95 * 96 / 2);
        EXPECT_EQ(block_max(float(threadIdx.x % 50), warps), 49);
      },
      1);
}

// c (16, 8) = a (16, 16) b (16, 8) by fragments loaded from shared memory, a as tiles, b transposed, both brought there by copies beside.
template <class T>
void multiply_tiles() {
  std::vector<T> a(256), b(128);
  std::vector<float> c(128), expected(128);
  for (int i = 0; i < 256; ++i) a[size_t(i)] = T(float(i % 13 - 6) / 4);
  for (int i = 0; i < 128; ++i) b[size_t(i)] = T(float(i % 7 - 3) / 2);
  for (int i = 0; i < 128; ++i)
    for (int k = 0; k < 16; ++k) expected[size_t(i)] += float(a[size_t(i / 8 * 16 + k)]) * float(b[size_t(k * 8 + i % 8)]);
  const auto kernel = [&] {
    SharedMemory shared;
    T* const as = shared.take<T>(256);
    T* const bs = shared.take<T>(128);
    const int l = int(threadIdx.x);
    copy_to_shared(as + l * 8, a.data() + l * 8);
    copy_to_shared(bs + l % 16 * 8, b.data() + l % 16 * 8);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    uint32_t fa[4], fb[4];
    load_tiles(fa, as + (l % 16) * 16 + l / 16 * 8);
    load_tiles_transposed(fb, bs + l % 16 * 8);
    float d[4] = {0, 0, 0, 0};
    const uint32_t two[2] = {fb[0], fb[1]};
    mma<T>(d, fa, two);
    for (int i = 0; i < 4; ++i) c[size_t((l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2)] = d[i];
  };
  run_blocks({dim3(1), dim3(32), 1024}, kernel, 1);
  EXPECT_EQ(c, expected);
}

TEST(HostKernel, MultipliesTiles) {
  multiply_tiles<Bf16>();
  multiply_tiles<F16>();
}

TEST(HostKernel, CopiesBesideArriveWhenWaitedFor) {
  const std::vector<float> from{1, 2, 3, 4};
  run_blocks(
      {dim3(1), dim3(1), 32},
      [&] {
        SharedMemory shared;
        float* const x = shared.take<float>(8);
        copy_to_shared(x, from.data());
        copies_commit();
        copy_to_shared(x + 4, from.data(), false);
        copies_commit();
        EXPECT_TRUE(std::isnan(x[0]));
        copies_wait<1>();
        EXPECT_EQ(x[3], 4);
        EXPECT_TRUE(std::isnan(x[4]));
        copies_wait<0>();
        EXPECT_EQ(x[4], 0);
      },
      1);
}

// A copy in another lane is ordered by a moment alone.
int value_after(bool waits, uint64_t seed) {
  const auto backend = make_test_backend("cuda_host", 1, seed);
  const Buffer memory = backend->allocate(sizeof(int), "number"), pinned = backend->reserve_pinned(sizeof(int), "number");
  const int one = 1;
  int read = 0;
  std::memcpy(pinned.data(), &one, sizeof one);
  backend->copy_beside(memory.data(), pinned.data(), sizeof one);
  if (waits) backend->wait(Lane::compute, backend->now(Lane::to_device));
  backend->copy(&read, memory.data(), sizeof read);
  return read;
}

// To the device and back beside: each way has a lane of its own.
int value_back(bool waits, uint64_t seed) {
  const auto backend = make_test_backend("cuda_host", 1, seed);
  const Buffer memory = backend->allocate(sizeof(int), "number"), pinned = backend->reserve_pinned(2 * sizeof(int), "numbers");
  const int one = 1;
  int read = 0;
  std::memcpy(pinned.data(), &one, sizeof one);
  backend->copy_beside(memory.data(), pinned.data(), sizeof one);
  if (waits) backend->wait(Lane::to_host, backend->now(Lane::to_device));
  backend->copy_beside(pinned.data() + sizeof one, memory.data(), sizeof one);
  backend->finish();
  std::memcpy(&read, pinned.data() + sizeof one, sizeof read);
  return read;
}

TEST(HostLanes, OnlyMomentsOrderThem) {
  for (const auto value : {value_after, value_back}) {
    int old = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      EXPECT_EQ(value(true, seed), 1);
      old += value(false, seed) == 0;
    }
    EXPECT_GT(old, 0);
  }
}

TEST(HostLanes, TheHostCannotTouchDeviceMemory) {
  const auto backend = make_test_backend("cuda_host", 1);
  const Buffer memory = backend->allocate(64, "number");
  EXPECT_TRUE(backend->on_device(memory.data() + 63));
  EXPECT_FALSE(backend->on_device(&backend));
  EXPECT_FALSE(backend->host_can_read());
  EXPECT_DEATH(memory.data()[0] = std::byte(1), "");
}

TEST(HostLanes, NoRoomIsAnError) {
  const auto backend = make_test_backend("cuda_host", 1);
  EXPECT_THROW(backend->allocate(backend->total_memory() + 1, "everything"), Error);
}

}  // namespace
}  // namespace tessera::cuda_host
