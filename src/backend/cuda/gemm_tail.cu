// What is added to a product where the library cannot do it on the way out.
#include <algorithm>

#include "backend/cuda/device.h"
#include "backend/cuda/gemm_parts.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int per_block = 256;

template <class C, class T>
__global__ void __launch_bounds__(per_block) add_to_product_kernel(C* c, const T* bias, const T* addend, int64_t size, int64_t cols) {
  for (int64_t i = int64_t(blockIdx.x) * per_block + int(threadIdx.x); i < size; i += int64_t(gridDim.x) * per_block) {
    float sum = value_of(c[i]);
    if (bias) sum += value_of(bias[i % cols]);
    if (addend) sum += value_of(addend[i]);
    c[i] = rounded<C>(sum);
  }
}

template <class F>
decltype(auto) dispatch(Dtype dtype, F&& f) {
  if (dtype == Dtype::f16) return f.template operator()<F16>();
  return dispatch_float(dtype, f);
}

}  // namespace

void add_to_product(Device& device, Tensor c, Tensor bias, Tensor addend) {
  if (c.size() == 0 || (bias.empty() && addend.empty())) return;
  const int64_t blocks = std::min<int64_t>((c.size() + per_block - 1) / per_block, int64_t(multiprocessors(device)) * 8);
  const auto add = [&]<class C, class T>() {
    launch(device, add_to_product_kernel<C, T>, {dim3(unsigned(blocks)), dim3(per_block)}, c.as<C>(), bias.as<const T>(),
           addend.as<const T>(), c.size(), c.cols());
  };
  dispatch(bias.empty() ? addend.dtype : bias.dtype, [&]<class T>() {
    if (c.dtype == Dtype::f32) return add.template operator()<float, T>();
    add.template operator()<T, T>();
  });
}

}  // namespace tessera::CUDA_SIDE
