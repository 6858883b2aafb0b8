// Random words and normal numbers many at a time: branch-free loops over arrays that become vector code, with the same bits at any width of
// vectors (no fused multiply-add, every operation is exactly rounded). Rng and the backends share them.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace tessera {

// Words of `count` Philox counters {first + i, lane, 0}: philox() of core/rng.h, transposed.
template <int count>
struct PhiloxBlock {
  uint32_t word[4][count];

  [[gnu::always_inline]] constexpr PhiloxBlock(uint64_t key, uint64_t first, uint32_t lane) {
    for (int i = 0; i < count; ++i) {
      const uint64_t counter = first + uint64_t(i);
      word[0][i] = uint32_t(counter), word[1][i] = uint32_t(counter >> 32), word[2][i] = lane, word[3][i] = 0;
    }
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < count; ++i) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * word[0][i], p1 = uint64_t(0xCD9E8D57u) * word[2][i];
        const uint32_t next0 = uint32_t(p1 >> 32) ^ word[1][i] ^ k0, next2 = uint32_t(p0 >> 32) ^ word[3][i] ^ k1;
        word[0][i] = next0, word[1][i] = uint32_t(p1), word[2][i] = next2, word[3][i] = uint32_t(p0);
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }
};

// log(x) for normal x > 0, about one unit in the last place. Polynomial: Cephes, logf.
[[gnu::always_inline]] constexpr float log_of(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const int32_t power = int32_t(bits - 0x3f3504f3u) >> 23;  // x = 2^power * m, m in [sqrt(1/2), sqrt(2))
  const float f = std::bit_cast<float>(bits - (uint32_t(power) << 23)) - 1, square = f * f, p = float(power);
  float y = 7.0376836292e-2f;
  y = y * f - 1.1514610310e-1f;
  y = y * f + 1.1676998740e-1f;
  y = y * f - 1.2420140846e-1f;
  y = y * f + 1.4249322787e-1f;
  y = y * f - 1.6668057665e-1f;
  y = y * f + 2.0000714765e-1f;
  y = y * f - 2.4999993993e-1f;
  y = y * f + 3.3333331174e-1f;
  return f + (y * f * square + p * -2.12194440e-4f - 0.5f * square) + p * 0.693359375f;
}

struct Turn {
  float cosine, sine;
};
// Of the angle 2 pi k / 2^24, k < 2^24: the nearest quarter turn, and the rest in [-pi/4, pi/4]. Polynomials: Cephes, sinf and cosf.
[[gnu::always_inline]] constexpr Turn turn_of(uint32_t k) {
  const int32_t quarter = (int32_t(k) + (1 << 21)) >> 22, rest = int32_t(k) - (quarter << 22);
  const float x = float(rest) * 3.7450704e-07f, x2 = x * x;
  const float s = ((-1.9515295891e-4f * x2 + 8.3321608736e-3f) * x2 - 1.6666654611e-1f) * x2 * x + x;
  const float c = ((2.443315711809948e-5f * x2 - 1.388731625493765e-3f) * x2 + 4.166664568298827e-2f) * x2 * x2 - 0.5f * x2 + 1;
  const float sine = quarter & 1 ? c : s, cosine = quarter & 1 ? s : c;
  const auto negative = [](float v, int32_t when) { return std::bit_cast<float>(std::bit_cast<uint32_t>(v) ^ uint32_t(when & 2) << 30); };
  return {negative(cosine, quarter + 1), negative(sine, quarter)};
}

// The normals 4 first, 4 first + 1, ... of the stream with this key: two Box-Muller pairs from each counter.
template <int count>
[[gnu::always_inline]] constexpr void normal_block(float* out, uint64_t key, uint64_t first) {
  const PhiloxBlock<count> random(key, first, 1);
  float values[4][count];
  for (int pair = 0; pair < 4; pair += 2)
    for (int i = 0; i < count; ++i) {
      const float radius = std::sqrt(-2 * log_of(float(int32_t(random.word[pair][i] >> 8) + 1) * 0x1p-24f));
      const Turn turn = turn_of(random.word[pair + 1][i] >> 8);
      values[pair][i] = radius * turn.cosine, values[pair + 1][i] = radius * turn.sine;
    }
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < 4; ++k) out[4 * i + k] = values[k][i];
}

}  // namespace tessera
