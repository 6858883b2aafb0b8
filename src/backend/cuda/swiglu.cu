#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"

namespace tessera::CUDA_SIDE {
namespace {

// 1 / (1 + e^-x), to the precision of T.
template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  if constexpr (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-x));
  return 1.0f / (1.0f + expf(-x));
}

template <int N, class T>
__global__ void __launch_bounds__(per_block) swiglu_kernel(T* out, const T* gate, const T* up, int64_t n) {
  for_packs<N>(n, [&]<int count>(int64_t i) {
    float g[count], u[count];
    load(g, gate + i);
    load(u, up + i);
    for (int k = 0; k < count; ++k) g[k] = g[k] * sigmoid<T>(g[k]) * u[k];
    store(out + i, g);
  });
}

// silu'(g) = s + g s (1 - s) with s = sigmoid(g).
template <int N, class T>
__global__ void __launch_bounds__(per_block)
    swiglu_backward_kernel(T* dgate, T* dup, const T* dout, const T* gate, const T* up, int64_t n) {
  for_packs<N>(n, [&]<int count>(int64_t i) {
    float dy[count], g[count], u[count];
    load(dy, dout + i);
    load(g, gate + i);
    load(u, up + i);
    for (int k = 0; k < count; ++k) {
      const float s = sigmoid<T>(g[k]), silu = g[k] * s;
      g[k] = dy[k] * u[k] * fmaf(-silu, s, s + silu);
      u[k] = dy[k] * silu;
    }
    store(dgate + i, g);
    store(dup + i, u);
  });
}

}  // namespace

void CudaBackend::swiglu(Tensor out, Tensor gate, Tensor up) {
  dispatch_float(gate.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({out.data, gate.data, up.data}), [&]<int N>() {
      launch(*device_, swiglu_kernel<N, T>, flat_grid(*device_, gate.size(), N), out.as<T>(), gate.as<const T>(), up.as<const T>(),
             gate.size());
    });
  });
}

void CudaBackend::swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  dispatch_float(gate.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({dgate.data, dup.data, dout.data, gate.data, up.data}), [&]<int N>() {
      launch(*device_, swiglu_backward_kernel<N, T>, flat_grid(*device_, gate.size(), N), dgate.as<T>(), dup.as<T>(), dout.as<const T>(),
             gate.as<const T>(), up.as<const T>(), gate.size());
    });
  });
}

}  // namespace tessera::CUDA_SIDE
