// Random numbers from a counter, not from a state: Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
// The same key and counter give the same bits on every rank, device, recompute and resume.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tessera {

using Philox4 = std::array<uint32_t, 4>;

// The ten rounds. Four 32-bit words for one 128-bit counter under one 64-bit key.
constexpr Philox4 philox(Philox4 counter, uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * counter[0], p1 = uint64_t(0xCD9E8D57u) * counter[2];
    counter = {uint32_t(p1 >> 32) ^ counter[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter[3] ^ k1, uint32_t(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// What the numbers are for; a key never serves two purposes.
enum class Purpose : uint32_t { init = 1, dropout = 2, shuffle = 3, sample = 4 };

// A stream of numbers: key from (seed, purpose, name), counter from an index. Copyable, stateless.
class Rng {
 public:
  Rng(uint64_t seed, Purpose purpose, std::string_view name = {}, uint64_t stream = 0);
  uint32_t bits(uint64_t index) const;                                  // 32 random bits
  float uniform(uint64_t index) const;                                  // [0, 1), 24 bits
  float normal(uint64_t index) const;                                   // mean 0, variance 1 (Box-Muller)
  void fill_normal(float* out, uint64_t begin, uint64_t count) const;   // normal(begin), normal(begin + 1), ...
  void fill_uniform(float* out, uint64_t begin, uint64_t count) const;  // uniform(begin), uniform(begin + 1), ...
  uint64_t below(uint64_t index, uint64_t n) const;                     // [0, n), bias below 2^-64 * n; REQUIRES: n > 0
  uint64_t key() const { return key_; }

 private:
  uint64_t key_;
};

// The order of [0, n) for one epoch: Fisher-Yates driven by Rng(seed, Purpose::shuffle).
std::vector<int64_t> shuffled(int64_t n, uint64_t seed, uint64_t epoch);

}  // namespace tessera
