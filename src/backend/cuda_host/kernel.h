// Kernels on the host, for tests without a GPU: blocks run one after another, a block's threads as fibers that switch at barriers and
// shuffles, in a seeded order that changes from block to block, so that a missing barrier shows as a wrong result.
// It tells what a kernel computes; not how fast it is, nor what blocks see of each other. Checked on the way: all threads meet at the same
// barrier and none has ended before it; shared memory stays within what the launch gives; tiles are aligned and lie in shared memory.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#include "backend/cuda/runtime.h"
#include "core/dtype.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  constexpr dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}  // NOLINT: as CUDA's
};

namespace tessera::cuda_host {

struct Grid {
  dim3 blocks, threads;
  size_t shared = 0;
};

// What a thread of a kernel knows of itself; of the fiber that runs now.
struct ThreadState {
  uint3 thread, block;
  dim3 threads, blocks;
  int warp = 0, lane = 0;
  std::byte* shared = nullptr;
  size_t shared_bytes = 0;
};
// constinit: read directly; through the function that g++ 12 would put before it, UBSan sees a null pointer that is not there.
extern constinit thread_local ThreadState* self;

using Site = std::source_location;
void meet_block(Site);
void meet_warp(Site);
// Every lane of the warp shows 24 bytes; then each may look at those of any lane until it shows the next.
struct Shown {
  uint32_t word[6];
};
void show(const Shown&, Site);
const Shown& shown_by(int lane);
void check_tile_row(const void* row, Site);
void later_copy(void* to, const void* from, bool valid);  // 16 bytes
void commit_copies();
void do_copies(int groups_left);
[[noreturn]] void kernel_error(const std::string& what, Site);

// All blocks, now.
void run_blocks(const Grid&, const std::function<void()>& thread, uint64_t seed);
// Given to Lane::compute.
void submit_kernel(Device&, const Grid&, std::function<void()> thread);

template <class... P, class... A>
void launch(Device& device, void (*kernel)(P...), const Grid& grid, A... given) {
  static_assert(sizeof...(P) == sizeof...(A));
  submit_kernel(device, grid, [=] { kernel(static_cast<P>(given)...); });
}

class SharedMemory {
 public:
  template <class T>
  T* take(int count, Site site = Site::current()) {
    T* at = reinterpret_cast<T*>(self->shared + used_);
    if (used_ + size_t(count) * sizeof(T) > self->shared_bytes) kernel_error("takes more shared memory than its launch gives", site);
    used_ += (size_t(count) * sizeof(T) + 15) / 16 * 16;
    return at;
  }

 private:
  size_t used_ = 0;
};

inline uint16_t bf16_bits(float x) { return Bf16(x).bits; }
inline uint16_t half_bits(float x) { return F16(x).bits; }
inline uint32_t bf16_pair_bits(float low, float high) { return uint32_t(bf16_bits(low)) | uint32_t(bf16_bits(high)) << 16; }
inline uint32_t half_pair_bits(float low, float high) { return uint32_t(half_bits(low)) | uint32_t(half_bits(high)) << 16; }
inline float half_value(uint16_t bits) {
  F16 h;
  h.bits = bits;
  return float(h);
}

// A 32-bit or 64-bit value of another lane of the warp.
template <class T>
T of_lane(T x, int lane, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(Shown));
  Shown mine{};
  std::memcpy(&mine, &x, sizeof x);
  show(mine, site);
  std::memcpy(&x, &shown_by(lane), sizeof x);
  return x;
}

template <class T>
float of_bits(uint32_t pair, int half) {
  T x;
  x.bits = uint16_t(half ? pair >> 16 : pair);
  return float(x);
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::current()) {
  show({{a[0], a[1], a[2], a[3], b[0], b[1]}}, site);
  const int g = self->lane / 4, t = self->lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, col = t * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const float x = of_bits<T>(shown_by(g * 4 + k % 8 / 2).word[row + 2 * (k / 8)], k % 2);
      const float y = of_bits<T>(shown_by(col * 4 + k % 8 / 2).word[4 + k / 8], k % 2);
      sum += x * y;
    }
    d[i] += sum;
  }
}

inline const std::byte* tile_row(int lane) {
  const std::byte* p;
  std::memcpy(&p, &shown_by(lane), sizeof p);
  return p;
}
inline void show_row(const void* row, Site site) {
  check_tile_row(row, site);
  Shown mine{};
  std::memcpy(&mine, &row, sizeof row);
  show(mine, site);
}
inline void load_tiles(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  show_row(row, site);
  const int lane = self->lane;
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], tile_row(i * 8 + lane / 4) + lane % 4 * 4, 4);
}
inline void load_tiles_transposed(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  show_row(row, site);
  const int lane = self->lane;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int h = 0; h < 2; ++h) std::memcpy(&pair[h], tile_row(i * 8 + lane % 4 * 2 + h) + lane / 4 * 2, 2);
    r[i] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
  }
}

// The bytes move as late as they may.
inline void copy_to_shared(void* to, const void* from, bool valid = true, Site site = Site::current()) {
  check_tile_row(to, site);
  if (valid && reinterpret_cast<uintptr_t>(from) % 16) kernel_error("copies 16 bytes from an address that is not a multiple of 16", site);
  later_copy(to, from, valid);
}
inline void copies_commit() { commit_copies(); }
template <int n>
void copies_wait() {
  do_copies(n);
}

}  // namespace tessera::cuda_host

#define threadIdx (::tessera::cuda_host::self->thread)
#define blockIdx (::tessera::cuda_host::self->block)
#define blockDim (::tessera::cuda_host::self->threads)
#define gridDim (::tessera::cuda_host::self->blocks)

// The functions of CUDA that kernels call, with its names.
inline void __syncthreads(std::source_location site = std::source_location::current()) { tessera::cuda_host::meet_block(site); }
inline void __syncwarp(unsigned = ~0u, std::source_location site = std::source_location::current()) { tessera::cuda_host::meet_warp(site); }
template <class T>
T __shfl_sync(unsigned, T x, int lane, int = 32, std::source_location site = std::source_location::current()) {
  return tessera::cuda_host::of_lane(x, lane & 31, site);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask, int = 32, std::source_location site = std::source_location::current()) {
  return tessera::cuda_host::of_lane(x, tessera::cuda_host::self->lane ^ mask, site);
}
template <class T>
T __shfl_down_sync(unsigned, T x, int by, int = 32, std::source_location site = std::source_location::current()) {
  const int lane = tessera::cuda_host::self->lane;
  return tessera::cuda_host::of_lane(x, lane + by < 32 ? lane + by : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned, T x, int by, int = 32, std::source_location site = std::source_location::current()) {
  const int lane = tessera::cuda_host::self->lane;
  return tessera::cuda_host::of_lane(x, lane >= by ? lane - by : lane, site);
}
inline unsigned __ballot_sync(unsigned, bool x, std::source_location site = std::source_location::current()) {
  using namespace tessera::cuda_host;
  show({{x, 0, 0, 0, 0, 0}}, site);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= (shown_by(lane).word[0] & 1u) << lane;
  return bits;
}

inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return std::exp(x); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline uint32_t __umulhi(uint32_t x, uint32_t y) { return uint32_t(uint64_t(x) * y >> 32); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
