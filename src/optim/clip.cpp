#include "optim/clip.h"

#include <cmath>

#include "ops/adamw.h"

namespace tessera {

namespace {

using Wide = __int128;

Wide join(SquareSum::Total t) { return Wide((unsigned __int128)(uint64_t(t.high)) << 64 | t.low); }
SquareSum::Total split(Wide w) { return {int64_t(w >> 64), uint64_t(w)}; }

// The largest block sum counts between 2^80 and 2^81: 2^46 blocks fit, and what is cut off stays far below a double's last bit.
constexpr int bits = 80;

}  // namespace

double SquareSum::largest() const { return tessera::largest(blocks_, parts_); }

int SquareSum::exponent_for(double largest_of_all) {
  if (largest_of_all == 0 || !std::isfinite(largest_of_all)) return 0;
  return std::ilogb(largest_of_all) - bits;
}

SquareSum::Total SquareSum::total(int exponent) const { return split(Wide(sum_units(blocks_, exponent, parts_))); }

SquareSum::Total SquareSum::sum(Total a, Total b) { return split(join(a) + join(b)); }
double SquareSum::value(Total total, int exponent) { return std::ldexp(double(join(total)), exponent); }

float clip_coefficient(float norm, float max_norm) {
  if (max_norm <= 0) return 1;
  const float coefficient = 1 / (norm + 1e-6f) * max_norm;  // torch divides a number by a tensor as reciprocal times number
  return coefficient > 1 ? 1 : coefficient;                 // NaN stays NaN
}

}  // namespace tessera
