// Limits: what this machine can do, read in the process that is compared with it and with the same number of threads. Rates are the best
// of several short repeats: a limit is what was reached once.
#pragma once
#include <cstddef>
#include <map>

#include "core/dtype.h"

namespace tessera {

// Floating-point operations per second of oneDNN's own product with weights packed beforehand, over a few large shapes. f32 or bf16.
double gemm_peak(Dtype, int threads);

// Bytes per second of ideal loops that go over the same `working_set` bytes again and again, cut evenly among the threads: in a cache when
// they fit, else from memory.
double read_rate(size_t working_set, int threads);    // every byte read
double copy_rate(size_t working_set, int threads);    // one half read, the other written; both count
double update_rate(size_t working_set, int threads);  // every byte read and written back; counts twice

// The same numbers, each read once.
class MachineLimits {
 public:
  explicit MachineLimits(int threads) : threads_(threads) {}
  double gemm(Dtype);
  double read(size_t working_set);
  double copy(size_t working_set);
  double update(size_t working_set);

 private:
  int threads_;
  std::map<Dtype, double> gemm_;
  std::map<size_t, double> read_, copy_, update_;
};

}  // namespace tessera
