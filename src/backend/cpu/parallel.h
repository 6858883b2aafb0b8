// The one way kernels use several cores: n items cut into chunks of `grain`, chunk boundaries independent of the number of threads.
// Inside a parallel region of another kernel the loop is serial.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace tessera {

// Threads for a piece of work of about `operations` multiplications or moves: below some tens of microseconds one thread is quicker than
// waking the others, and on busy cores much quicker. Chunks stay the same, so the bits do too.
inline int worth_threads(int threads, int64_t operations) { return operations < (int64_t(1) << 20) ? 1 : threads; }

// Calls f(begin, end) for each chunk. f must not throw.
template <class F>
void parallel_chunks(int threads, int64_t n, int64_t grain, F&& f) {
  grain = std::max<int64_t>(grain, 1);
  const int64_t chunks = (n + grain - 1) / grain;
  if (threads <= 1 || chunks <= 1 || omp_in_parallel()) {
    for (int64_t c = 0; c < chunks; ++c) f(c * grain, std::min(n, (c + 1) * grain));
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < chunks; ++c) f(c * grain, std::min(n, (c + 1) * grain));
}

}  // namespace tessera
