#include "quant/codebook4.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "ops/codebook4.h"

namespace tessera {

namespace {

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

NestedAbsmax encode_absmax(const std::vector<float>& absmax, Backend* home) { return encode_absmax(absmax, torch_mean(absmax), home); }

NestedAbsmax encode_absmax(const std::vector<float>& absmax, float offset, Backend* home) {
  const auto n = int64_t(absmax.size()), scales = (n + nested_block - 1) / nested_block;
  NestedAbsmax out{std::vector<uint8_t>(size_t(n)), std::vector<float>(size_t(scales)), offset};
  nested_encode(Tensor{out.codes.data(), Dtype::u8, {n}, home}, Tensor{out.nested_absmax.data(), Dtype::f32, {scales}, home},
                Tensor{const_cast<float*>(absmax.data()), Dtype::f32, {n}, home}, offset, dynamic_map());
  return out;
}

Codes4 codes_of(const Weight& w) {
  const auto& store = std::get<Codebook4>(w.store);
  Codes4 c;
  c.rows = w.out, c.cols = w.in, c.block = block4;
  c.table = store.format->table;
  c.codes = store.codes.value;
  c.absmax = store.nested ? store.absmax_codes.value : store.absmax.value;
  if (!store.nested) return c;
  c.map = dynamic_map();
  c.nested_absmax = store.nested_absmax.value, c.nested_offset = store.nested_offset.value;
  return c;
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
