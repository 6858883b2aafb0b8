// AdamW and sums of squares, operation by operation as backend/cpu/adamw.cpp: the same bits.
#include <cmath>

#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"

namespace tessera::CUDA_SIDE {
namespace {

struct Factors {
  float decay, step, root2, take1, keep1, take2, keep2, eps, gradient_scale;
};

Factors factors_of(const AdamwStep& s) {
  const auto take1 = float(1 - s.beta1);
  return {float(1 - s.lr * s.weight_decay),
          float(-(s.lr / (1 - std::pow(s.beta1, double(s.step))))),
          float(std::sqrt(1 - std::pow(s.beta2, double(s.step)))),
          take1,
          1 - take1,
          float(1 - s.beta2),
          float(s.beta2),
          float(s.eps),
          s.gradient_scale};
}

// Order of operations: torch.optim.AdamW, foreach=False.
template <int N, bool copies>
__global__ void __launch_bounds__(per_block)
    adamw_kernel(float* value, float* m, float* v, const float* gradient, Bf16* copy, Factors f, int64_t n) {
  for_packs<N>(n, [&]<int count>(int64_t i) {
    float g[count], mean[count], square[count], next[count];
    load(g, gradient + i);
    load(mean, m + i);
    load(square, v + i);
    load(next, value + i);
#pragma unroll
    for (int k = 0; k < count; ++k) {
      g[k] *= f.gradient_scale;
      const float difference = g[k] - mean[k];
      // torch.lerp starts from the nearer end
      mean[k] = f.take1 < 0.5f ? mean[k] + f.take1 * difference : g[k] - difference * f.keep1;
      square[k] = square[k] * f.keep2 + f.take2 * g[k] * g[k];
      const float below = sqrtf(square[k]) / f.root2 + f.eps;
      next[k] = next[k] * f.decay + f.step * mean[k] / below;
    }
    store(m + i, mean);
    store(v + i, square);
    store(value + i, next);
    if constexpr (copies) store(copy + i, next);
  });
}

constexpr int block = 64;  // elements in a sum

// Eight partial sums of a block, four in each of two threads; fours of elements are theirs in turn.
template <bool whole>
__global__ void __launch_bounds__(per_block) square_sums_kernel(double* sums, const float* x, int64_t n, int64_t blocks) {
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t b = thread / 2, begin = b * block;
  const int half = int(thread % 2) * 4;
  double part[4] = {};
  float v[block / 8][4];
#pragma unroll
  for (int i = 0; i < block / 8; ++i) {
    const int64_t at = begin + i * 8 + half;
    if (whole && at + 4 <= n) {
      load(v[i], x + at);
    } else {
      for (int k = 0; k < 4; ++k) v[i][k] = at + k < n ? x[at + k] : 0;
    }
  }
#pragma unroll
  for (int i = 0; i < block / 8; ++i)
    for (int k = 0; k < 4; ++k) part[k] += double(v[i][k]) * double(v[i][k]);
#pragma unroll
  for (int k = 0; k < 4; ++k) part[k] += __shfl_xor_sync(whole_warp, part[k], 1);
  if (half == 0 && b < blocks) sums[b] = (part[0] + part[2]) + (part[1] + part[3]);
}

}  // namespace

void CudaBackend::adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep& s) {
  const auto run = [&]<int N, bool copies>() {
    launch(*device_, adamw_kernel<N, copies>, flat_grid(*device_, value.size(), N), value.as<float>(), m.as<float>(), v.as<float>(),
           gradient.as<const float>(), copy.as<Bf16>(), factors_of(s), value.size());
  };
  const bool whole = aligned({value.data, m.data, v.data, gradient.data, copy.data});
  with_packs<4>(whole, [&]<int N>() { copy.empty() ? run.template operator()<N, false>() : run.template operator()<N, true>(); });
}

void CudaBackend::square_sums(Tensor sums, Tensor x) {
  const int64_t blocks = sums.size(), launched = (2 * blocks + per_block - 1) / per_block;
  launch(*device_, aligned({x.data}) ? square_sums_kernel<true> : square_sums_kernel<false>, {dim3(unsigned(launched)), dim3(per_block)},
         sums.as<double>(), x.as<const float>(), x.size(), blocks);
}

}  // namespace tessera::CUDA_SIDE
