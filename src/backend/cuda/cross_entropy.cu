// A block has a row: its logits are read once for the largest of them and the sum (Milakov and Gimelshein, "Online normalizer calculation
// for softmax", 2018), and once more for the gradient.
#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int most_threads = 512, most_warps = most_threads / warp_size;

// most: the largest so far; sum: of e^(x - most). Starts at the least float, not at -infinity, whose difference to itself is no number.
struct Softmax {
  float most = -3.4028234664e38f, sum = 0;

  template <int N>
  __device__ __forceinline__ void add(const float (&x)[N]) {
    float largest = most;
#pragma unroll
    for (int k = 0; k < N; ++k) largest = fmaxf(largest, x[k]);
    if (largest > most) {
      sum *= expf(most - largest);
      most = largest;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sum += expf(x[k] - most);
  }
};

// gradient: null, or what becomes (softmax - onehot) * scale; it may be x.
template <int N, class T, class G>
__global__ void __launch_bounds__(most_threads)
    cross_entropy_kernel(float* loss, G* gradient, const T* x, const int32_t* labels, int64_t cols, float scale) {
  SharedMemory shared;
  float* const warps = shared.take<float>(most_warps);
  const int64_t row = blockIdx.x, step = int64_t(blockDim.x) * N;
  const T* const from = x + row * cols;
  const int label = labels[row];
  const float given = value_of(from[label]);
  Softmax mine;
#pragma unroll 4
  for (int64_t i = int64_t(threadIdx.x) * N; i < cols; i += step) {
    float v[N];
    load(v, from + i);
    mine.add(v);
  }
  const float most = block_max(mine.most, warps);
  const float sum = block_sum(mine.sum * expf(mine.most - most), warps);
  if (threadIdx.x == 0) loss[row] = logf(sum) + (most - given);
  if (!gradient) return;
  const float weight = scale / sum;
#pragma unroll 4
  for (int64_t i = int64_t(threadIdx.x) * N; i < cols; i += step) {
    float v[N];
    load(v, from + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float share = expf(v[k] - most);
      v[k] = i + k == label ? (share / sum - 1) * scale : share * weight;
    }
    store(gradient + row * cols + i, v);
  }
}

}  // namespace

void CudaBackend::cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) {
  const int64_t cols = logits.cols();
  dispatch_float(logits.dtype, [&]<class T>() {
    dispatch_float(gradient.empty() ? logits.dtype : gradient.dtype, [&]<class G>() {
      constexpr int most = sizeof(T) + sizeof(G) == 8 ? 4 : 8;
      with_packs<most>(aligned({logits.data, gradient.data}) && cols % most == 0, [&]<int N>() {
        const int64_t threads = std::clamp<int64_t>((cols / N + warp_size - 1) / warp_size * warp_size, warp_size, most_threads);
        launch(*device_, cross_entropy_kernel<N, T, G>,
               {dim3(unsigned(logits.rows())), dim3(unsigned(threads)), most_warps * sizeof(float)}, loss.as<float>(), gradient.as<G>(),
               logits.as<const T>(), labels.as<const int32_t>(), cols, scale);
      });
    });
  });
}

}  // namespace tessera::CUDA_SIDE
