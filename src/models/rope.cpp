#include <cmath>
#include <numbers>

#include "models/config.h"

namespace tessera {
namespace {

// Long wavelengths are slowed by `factor`, short ones kept, those between mixed. Source: transformers, _compute_llama3_parameters.
float llama3(float inv_freq, const RopeConfig& r) {
  const double original = double(r.original_max_positions), wavelength = 2 * std::numbers::pi / inv_freq;
  if (wavelength < original / r.high_freq_factor) return inv_freq;
  if (wavelength > original / r.low_freq_factor) return float(inv_freq / r.factor);
  const double smooth = (original / wavelength - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
  return float((1 - smooth) * inv_freq / r.factor + smooth * inv_freq);
}

}  // namespace

RopeTables rope_tables(const ModelConfig& c, int64_t positions) {
  RopeTables t;
  t.positions = positions;
  t.half = c.head_dim / 2;
  for (int64_t i = 0; i < t.half; ++i) {
    const float f = 1.0f / std::pow(float(c.rope.theta), float(2 * i) / float(c.head_dim));
    t.inv_freq.push_back(c.rope.type == "linear" ? float(f / c.rope.factor) : c.rope.type == "llama3" ? llama3(f, c.rope) : f);
  }
  t.cos.resize(size_t(positions * t.half));
  t.sin.resize(t.cos.size());
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < t.half; ++i) {
      const float angle = float(p) * t.inv_freq[size_t(i)];
      t.cos[size_t(p * t.half + i)] = float(std::cos(double(angle)));
      t.sin[size_t(p * t.half + i)] = float(std::sin(double(angle)));
    }
  return t;
}

}  // namespace tessera
