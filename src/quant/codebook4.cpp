#include "quant/codebook4.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cfloat>
#include <cmath>

#include "ops/codebook4.h"

namespace tessera {

namespace {

float flushed(float x) { return std::abs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

// The nearest entry of the dynamic map; halfway between two the even index, as the search of bitsandbytes' CUDA kernel ends. NaN: 0.
uint8_t nearest_code(float y) {
  static const auto middles = [] {
    std::array<float, 255> out;
    for (int i = 0; i < 255; ++i) out[i] = (dynamic_map()[i] + dynamic_map()[i + 1]) * 0.5f;
    return out;
  }();
  int code = 0;
  for (int step = 128; step; step /= 2) code += middles[code + step - 1] < y ? step : 0;
  const bool halfway = code < 255 && middles[code] == y;
  return uint8_t(code + (halfway ? code & 1 : 0));
}

// 8-bit codes of one block, by the rule of the 4-bit blocks. Returns its largest magnitude.
float encode_block8(uint8_t* codes, const float* x, int64_t n) {
  float absmax = -FLT_MAX;
  for (int64_t i = 0; i < n; ++i) absmax = std::fmax(absmax, std::abs(flushed(x[i])));
  if (n < nested_block) absmax = std::fmax(absmax, 0.0f);
  const float inverse = flushed(1 / absmax);
  for (int64_t i = 0; i < n; ++i) codes[i] = nearest_code(flushed(x[i]) * inverse);
  return absmax;
}

// --- torch.sum -----------------------------------------------------------------------------------------------------------------------
// Source: aten/src/ATen/native/cpu/SumKernel.cpp, vectorized_inner_sum, one thread: 4 interleaved rows of vectors, each row
// summed in a cascade of 4 levels.
constexpr int lanes = 8, rows = 4, levels = 4;  // torch compiles its sums for vectors of 8 floats
using Lanes = std::array<float, lanes>;

void add(Lanes& sum, const float* x) {
  for (int k = 0; k < lanes; ++k) sum[k] += x[k];
}

int ceil_log2(int64_t n) {
  int log = 0;
  while ((int64_t(1) << log) < n) ++log;
  return log;
}

// Row r holds the vectors r, r + 4, r + 8, ... of x: `count` of them.
Lanes cascade_sum(const float* x, int64_t count) {
  const int power = std::max(4, ceil_log2(count) / levels);
  const int64_t step = int64_t(1) << power;
  std::array<Lanes, levels> sums{};
  const auto vector = [&](int64_t i) { return x + i * rows * lanes; };
  int64_t i = 0;
  while (i + step <= count) {
    for (int64_t end = i + step; i < end; ++i) add(sums[0], vector(i));
    for (int level = 1; level < levels; ++level) {
      add(sums[level], sums[level - 1].data());
      sums[level - 1] = {};
      if (i & ((step - 1) << (level * power))) break;
    }
  }
  for (; i < count; ++i) add(sums[0], vector(i));
  for (int level = 1; level < levels; ++level) add(sums[0], sums[level].data());
  return sums[0];
}

float torch_sum(const std::vector<float>& values) {
  const int64_t n = int64_t(values.size()), vectors = n / lanes, each = vectors / rows;
  std::array<Lanes, rows> sums;
  for (int r = 0; r < rows; ++r) sums[r] = cascade_sum(values.data() + r * lanes, each);
  for (int64_t i = each * rows; i < vectors; ++i) add(sums[0], values.data() + i * lanes);
  for (int r = 1; r < rows; ++r) add(sums[0], sums[r].data());
  float sum = 0;
  for (int64_t i = vectors * lanes; i < n; ++i) sum += values[i];
  for (float part : sums[0]) sum += part;
  return sum;
}

}  // namespace

float torch_mean(const std::vector<float>& values) { return torch_sum(values) / float(values.size()); }

NestedAbsmax encode_absmax(const std::vector<float>& absmax) { return encode_absmax(absmax, torch_mean(absmax)); }

NestedAbsmax encode_absmax(const std::vector<float>& absmax, float offset) {
  NestedAbsmax out;
  out.offset = offset;
  out.codes.resize(absmax.size());
  std::vector<float> difference(absmax.size());
  std::transform(absmax.begin(), absmax.end(), difference.begin(), [&](float a) { return a - offset; });
  for (size_t i = 0; i < absmax.size(); i += nested_block)
    out.nested_absmax.push_back(encode_block8(&out.codes[i], &difference[i], std::min<int64_t>(nested_block, int64_t(absmax.size() - i))));
  return out;
}

void decode(Tensor out, const Codebook4& w, Tensor scratch) {
  Tensor absmax = w.absmax.value;
  if (w.nested) {
    const Tensor codes = w.absmax_codes.value;
    assert(scratch.dtype == Dtype::f32 && scratch.size() >= codes.size());
    absmax = scratch;
    absmax.shape = {codes.size()};
    nested_decode(absmax, codes, w.nested_absmax.value, w.nested_offset.value, dynamic_map());
  }
  codebook4_decode(out, w.codes.value, absmax, w.format->table, block4);
}

}  // namespace tessera
