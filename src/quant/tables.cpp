// The code tables of bitsandbytes.
#include <algorithm>
#include <array>
#include <cmath>

#include "quant/format.h"

namespace tessera {

namespace {

// Quantiles of the normal distribution as QLoRA (Dettmers et al., 2023) published them.
constexpr float nf4[16] = {-1.0f,
                           -0.6961928009986877f,
                           -0.5250730514526367f,
                           -0.39491748809814453f,
                           -0.28444138169288635f,
                           -0.18477343022823334f,
                           -0.09105003625154495f,
                           0.0f,
                           0.07958029955625534f,
                           0.16093020141124725f,
                           0.24611230194568634f,
                           0.33791524171829224f,
                           0.44070982933044434f,
                           0.5626170039176941f,
                           0.7229568362236023f,
                           1.0f};

// Element i of torch.linspace(0.1, 1, m + 1) in float on a CPU: from the nearer end, with a fused multiply-add.
float linspace(int i, int m) {
  const float start = 0.1f, end = 1.0f, step = (end - start) / float(m);
  return i < (m + 1) / 2 ? std::fma(step, float(i), start) : std::fma(-step, float(m - i), end);
}

// create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8): seven decades, decade i cut into 2^i pieces.
std::array<float, 256> make_dynamic_map() {
  std::array<float, 256> map{0.0f, 1.0f};
  size_t at = 2;
  for (int i = 0; i < 7; ++i) {
    const float power = float(std::pow(10.0, i - 6));
    for (int j = 0; j < 1 << i; ++j) {
      const float value = power * ((linspace(j, 1 << i) + linspace(j + 1, 1 << i)) / 2);
      map[at++] = value;
      map[at++] = -value;
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

const float* nf4_table() { return nf4; }

const float* dynamic_map() {
  static const std::array<float, 256> map = make_dynamic_map();
  return map.data();
}

}  // namespace tessera
