#include "ops/adamw.h"

#include <algorithm>
#include <cassert>
#include <vector>

#include "backend/backend.h"

namespace tessera {

void adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep& step) {
  for ([[maybe_unused]] Tensor t : {value, m, v, gradient}) assert(t.dtype == Dtype::f32 && t.size() == value.size());
  assert(copy.empty() || (copy.dtype == Dtype::bf16 && copy.size() == value.size()));
  assert(step.step >= 1);
  if (value.size()) value.home->adamw(value, m, v, gradient, copy, step);
}

void square_sums(Tensor sums, Tensor x) {
  assert(x.dtype == Dtype::f32 && sums.dtype == Dtype::f64 && sums.size() == (x.size() + 63) / 64);
  if (x.size()) x.home->square_sums(sums, x);
}

double largest(std::span<const Tensor> x, Tensor parts) {
  assert(parts.dtype == Dtype::i64 && parts.rows() > 0 && parts.cols() == 2);
  const Tensor values{parts.data, Dtype::f64, {parts.size()}, parts.home};
  parts.home->fill_zero(parts);
  for (const Tensor& some : x)
    if (some.size()) parts.home->largest(values, some);
  std::vector<double> host(size_t(values.size()));
  parts.home->copy(host.data(), values.data, values.bytes());
  return *std::max_element(host.begin(), host.end());
}

unsigned __int128 sum_units(std::span<const Tensor> x, int exponent, Tensor parts) {
  assert(parts.dtype == Dtype::i64 && parts.rows() > 0 && parts.cols() == 2);
  parts.home->fill_zero(parts);
  for (const Tensor& some : x)
    if (some.size()) parts.home->sum_units(parts, some, exponent);
  std::vector<uint64_t> host(size_t(parts.size()));
  parts.home->copy(host.data(), parts.data, parts.bytes());
  unsigned __int128 sum = 0;
  for (size_t i = 0; i < host.size(); i += 2) sum += static_cast<unsigned __int128>(host[i + 1]) << 64 | host[i];
  return sum;
}

}  // namespace tessera
