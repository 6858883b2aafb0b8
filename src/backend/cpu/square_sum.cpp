// What the norm of a gradient needs of the sums of its squares.
#include <cmath>
#include <limits>

#include "backend/cpu/cpu.h"
#include "core/whole_units.h"

namespace tessera {

void CpuBackend::largest(Tensor parts, Tensor x) {
  double most = parts.as<double>()[0];
  const double* const values = x.as<const double>();
  for (int64_t i = 0; i < x.size(); ++i)
    if (!(values[i] <= most)) most = std::isfinite(values[i]) ? values[i] : std::numeric_limits<double>::infinity();
  parts.as<double>()[0] = most;
}

void CpuBackend::sum_units(Tensor parts, Tensor x, int exponent) {
  auto* const words = parts.as<uint64_t>();
  unsigned __int128 sum = static_cast<unsigned __int128>(words[1]) << 64 | words[0];
  const double* const values = x.as<const double>();
  for (int64_t i = 0; i < x.size(); ++i) sum += whole_units(values[i], exponent);
  words[0] = uint64_t(sum), words[1] = uint64_t(sum >> 64);
}

}  // namespace tessera
