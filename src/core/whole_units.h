// Sums of doubles that do not depend on their order: as 128-bit integers, in whole units of one power of two.
#pragma once
#include <bit>
#include <cstdint>

namespace tessera {

// The whole units of 2^exponent in a finite x >= 0, cut off. The bits of x are a mantissa of 53 and a power of two. REQUIRES: it fits.
constexpr unsigned __int128 whole_units(double x, int exponent) {
  const auto word = std::bit_cast<uint64_t>(x);
  const int field = int(word >> 52), shift = (field > 1 ? field : 1) - 1075 - exponent;
  const uint64_t mantissa = (word & ((uint64_t(1) << 52) - 1)) | uint64_t(field > 0) << 52;
  if (shift >= 0) return static_cast<unsigned __int128>(mantissa) << shift;
  return shift > -64 ? mantissa >> -shift : 0;
}

}  // namespace tessera
