// The mask is Philox of core/rng.h: four words, of four elements, from each counter.
#include <cmath>

#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"
#include "core/rng.h"

namespace tessera::CUDA_SIDE {
namespace {

// A thread has N elements of a row of the batch, blockIdx.y that row. Not `whole`: rows or addresses are no multiples of packs.
template <int N, bool whole, class T>
__global__ void __launch_bounds__(per_block) dropout_kernel(T* out, const T* x, const int64_t* row_keys, int64_t batch, int64_t row,
                                                            uint64_t key, uint32_t threshold, float factor) {
  for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    const auto row_key = uint64_t(row_keys[b]);
    for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < row; i += int64_t(gridDim.x) * blockDim.x * N) {
      const T* const from = x + b * row + i;
      T* const to = out + b * row + i;
      float v[N];
      if constexpr (whole) {
        load(v, from);
      } else {
        for (int k = 0; k < N; ++k) v[k] = i + k < row ? value_of(from[k]) : 0;
      }
#pragma unroll
      for (int k = 0; k < N; k += 4) {
        const uint64_t counter = uint64_t(i + k) / 4;
        const Philox4 words = philox({uint32_t(counter), uint32_t(counter >> 32), uint32_t(row_key), uint32_t(row_key >> 32)}, key);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[k + j] = words[size_t(j)] < threshold ? 0.0f : v[k + j] * factor;
      }
      if constexpr (whole) {
        store(to, v);
      } else {
        for (int k = 0; k < N; ++k)
          if (i + k < row) to[k] = rounded<T>(v[k]);
      }
    }
  }
}

}  // namespace

void CudaBackend::dropout(Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p) {
  const int64_t batch = x.shape.dim[0], row = batch ? x.size() / batch : 0;
  const auto threshold = uint32_t(std::ceil(double(p) * 0x1p32));
  const auto factor = float(1 / (1 - double(p)));
  dispatch_float(x.dtype, [&]<class T>() {
    constexpr int N = pack_of<T>;
    Grid grid = flat_grid(*device_, row, N);
    grid.blocks.y = unsigned(std::min<int64_t>(batch, 65535));
    const bool whole = aligned({out.data, x.data}) && row % N == 0;
    launch(*device_, whole ? dropout_kernel<N, true, T> : dropout_kernel<N, false, T>, grid, out.as<T>(), x.as<const T>(),
           row_keys.as<const int64_t>(), batch, row, key, threshold, factor);
  });
}

}  // namespace tessera::CUDA_SIDE
