#include "core/rng.h"

#include <algorithm>
#include <numeric>

#include "core/normal.h"

namespace tessera {
namespace {
Philox4 words(uint64_t key, uint64_t index, uint32_t lane = 0) { return philox({uint32_t(index), uint32_t(index >> 32), lane, 0}, key); }

uint64_t fnv1a(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const char c : text) h = (h ^ uint8_t(c)) * 0x100000001b3ull;
  return h;
}
}  // namespace

Rng::Rng(uint64_t seed, Purpose purpose, std::string_view name, uint64_t stream) {
  const uint64_t name_hash = fnv1a(name);
  const Philox4 a = philox({uint32_t(seed), uint32_t(seed >> 32), uint32_t(purpose), uint32_t(stream)}, name_hash ^ (stream >> 32 << 32));
  key_ = uint64_t(a[0]) << 32 | a[1];
}

uint32_t Rng::bits(uint64_t index) const { return words(key_, index / 4)[index % 4]; }
float Rng::uniform(uint64_t index) const { return float(bits(index) >> 8) * 0x1p-24f; }

namespace {
constexpr int block = 64;  // counters at a time
}  // namespace

float Rng::normal(uint64_t index) const {
  float four[4];
  normal_block<1>(four, key_, index / 4);
  return four[index % 4];
}

void Rng::fill_normal(float* out, uint64_t begin, uint64_t count) const {
  float values[4 * block];
  for (uint64_t i = begin, end = begin + count; i < end;) {
    const uint64_t skip = i % 4, n = std::min<uint64_t>(end - i, 4 * block - skip);
    normal_block<block>(values, key_, i / 4);
    out = std::copy_n(values + skip, n, out);
    i += n;
  }
}

void Rng::fill_uniform(float* out, uint64_t begin, uint64_t count) const {
  for (uint64_t i = begin, end = begin + count; i < end;) {
    const uint64_t skip = i % 4, n = std::min<uint64_t>(end - i, 4 * block - skip);
    const PhiloxBlock<block> random(key_, i / 4, 0);
    for (uint64_t k = skip; k < skip + n; ++k) *out++ = float(random.word[k % 4][k / 4] >> 8) * 0x1p-24f;
    i += n;
  }
}

uint64_t Rng::below(uint64_t index, uint64_t n) const {
  const Philox4 w = words(key_, index, 2);
  const auto wide = static_cast<unsigned __int128>(uint64_t(w[0]) << 32 | w[1]) * n;
  return uint64_t(wide >> 64);
}

std::vector<int64_t> shuffled(int64_t n, uint64_t seed, uint64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  const Rng rng(seed, Purpose::shuffle, "epoch", epoch);
  for (int64_t i = n - 1; i > 0; --i) std::swap(order[size_t(i)], order[rng.below(uint64_t(i), uint64_t(i) + 1)]);
  return order;
}

}  // namespace tessera
