// Normal numbers of core/normal.h: the same bits as on the host, since each of its operations is exactly rounded.
#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"
#include "core/normal.h"

namespace tessera::CUDA_SIDE {
namespace {

// A thread has one counter at a time, which makes four numbers; out[0] is number `begin` of the stream.
template <class T>
__global__ void __launch_bounds__(per_block) random_normal_kernel(T* out, int64_t n, uint64_t key, uint64_t begin, float scale) {
  const int64_t skip = int64_t(begin % 4), counters = (n + skip + 3) / 4;
  for (int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; c < counters; c += int64_t(gridDim.x) * blockDim.x) {
    float four[4];
    normal_block<1>(four, key, begin / 4 + uint64_t(c));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t i = 4 * c + k - skip;
      if (i >= 0 && i < n) out[i] = rounded<T>(four[k] * scale);
    }
  }
}

}  // namespace

void CudaBackend::random_normal(Tensor out, uint64_t key, uint64_t begin, float scale) {
  dispatch_float(out.dtype, [&]<class T>() {
    launch(*device_, random_normal_kernel<T>, flat_grid(*device_, out.size(), 4), out.as<T>(), out.size(), key, begin, scale);
  });
}

}  // namespace tessera::CUDA_SIDE
