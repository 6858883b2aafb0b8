// A block forms one row; its values stay in registers between the sum and the product where the row is short enough.
#include "backend/cuda/cuda.h"
#include "backend/cuda/device.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int per_block = 256;
constexpr int warps = per_block / warp_size;

template <class T>
__global__ void __launch_bounds__(per_block) rmsnorm_kernel(T* out, float* rstd, const T* x, const T* w, int cols, float eps) {
  SharedMemory shared;
  float* const partial = shared.take<float>(warps);
  const size_t row = blockIdx.x;
  const T* const from = x + row * size_t(cols);
  float sum = 0;
  for (int i = int(threadIdx.x); i < cols; i += per_block) {
    const float v = value_of(from[i]);
    sum = fmaf(v, v, sum);
  }
  sum = block_sum(sum, partial);
  const float scale = 1.0f / sqrtf(sum / float(cols) + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
  for (int i = int(threadIdx.x); i < cols; i += per_block)
    out[row * size_t(cols) + size_t(i)] = rounded<T>(value_of(rounded<T>(value_of(from[i]) * scale)) * value_of(w[i]));
}

}  // namespace

void CudaBackend::rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
  dispatch_float(x.dtype, [&]<class T>() {
    launch(*device_, rmsnorm_kernel<T>, {dim3(unsigned(x.rows())), dim3(per_block), warps * sizeof(float)}, out.as<T>(), rstd.as<float>(),
           x.as<const T>(), w.as<const T>(), int(x.cols()), eps);
  });
}

}  // namespace tessera::CUDA_SIDE
