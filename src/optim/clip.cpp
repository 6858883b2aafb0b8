#include "optim/clip.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace tessera {

namespace {

using Wide = __int128;

Wide join(SquareSum::Total t) { return Wide((unsigned __int128)(uint64_t(t.high)) << 64 | t.low); }
SquareSum::Total split(Wide w) { return {int64_t(w >> 64), uint64_t(w)}; }

// The largest block sum counts between 2^80 and 2^81: 2^46 blocks fit, and what is cut off stays far below a double's last bit.
constexpr int bits = 80;

// A finite number >= 0 in units of 2^exponent, cut off to a whole number. Its bits are a mantissa of 53 bits and a power of two.
Wide units(double x, int exponent) {
  const auto word = std::bit_cast<uint64_t>(x);
  const int field = int(word >> 52), shift = std::max(field, 1) - 1075 - exponent;
  const uint64_t mantissa = (word & ((uint64_t(1) << 52) - 1)) | uint64_t(field > 0) << 52;
  if (shift >= 0) return Wide(mantissa) << shift;
  return shift > -64 ? mantissa >> -shift : 0;
}

}  // namespace

void SquareSum::add(std::span<const double> blocks) {
  blocks_.push_back(blocks);
  for (const double sum : blocks)
    if (!(sum <= largest_)) largest_ = std::isfinite(sum) ? sum : std::numeric_limits<double>::infinity();
}

int SquareSum::exponent_for(double largest_of_all) {
  if (largest_of_all == 0 || !std::isfinite(largest_of_all)) return 0;
  return std::ilogb(largest_of_all) - bits;
}

SquareSum::Total SquareSum::total(int exponent) const {
  Wide sum = 0;
  if (!finite()) return split(sum);
  for (const auto& blocks : blocks_)
    for (const double block : blocks) sum += units(block, exponent);
  return split(sum);
}

SquareSum::Total SquareSum::sum(Total a, Total b) { return split(join(a) + join(b)); }
double SquareSum::value(Total total, int exponent) { return std::ldexp(double(join(total)), exponent); }

float clip_coefficient(float norm, float max_norm) {
  if (max_norm <= 0) return 1;
  const float coefficient = 1 / (norm + 1e-6f) * max_norm;  // torch divides a number by a tensor as reciprocal times number
  return coefficient > 1 ? 1 : coefficient;                 // NaN stays NaN
}

}  // namespace tessera
