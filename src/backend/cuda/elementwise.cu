#include "backend/cuda/columns.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"

namespace tessera::CUDA_SIDE {
namespace {

template <int N, class To, class From>
__global__ void __launch_bounds__(per_block) convert_kernel(To* out, const From* x, int64_t n) {
  for_packs<N>(n, [&]<int count>(int64_t i) {
    float v[count];
    load(v, x + i);
    store(out + i, v);
  });
}

template <int N, class Sum, class X, class Y>
__global__ void __launch_bounds__(per_block) add_kernel(Sum* out, const X* x, const Y* y, int64_t n) {
  for_packs<N>(n, [&]<int count>(int64_t i) {
    float a[count], b[count];
    load(a, x + i);
    load(b, y + i);
    for (int k = 0; k < count; ++k) a[k] += b[k];
    store(out + i, a);
  });
}

template <int N, class T>
__global__ void __launch_bounds__(per_block) add_bias_kernel(T* y, const T* bias, int64_t rows, int cols) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  for (int i = int(threadIdx.x) * N; i < cols; i += int(blockDim.x) * N) {
    float v[N], b[N];
    T* const at = y + row * cols + i;
    load(v, at);
    load(b, bias + i);
    for (int k = 0; k < N; ++k) v[k] += b[k];
    store(at, v);
  }
}

template <int N, class T>
struct Elements {
  const T* x;
  int cols;
  __device__ void operator()(float (&terms)[N], int64_t row, int col) const { load(terms, x + row * cols + col); }
};

template <class To, class From>
void convert_to(Device& device, To* out, const From* x, int64_t n) {
  constexpr int most = sizeof(To) + sizeof(From) == 8 ? 4 : 8;
  with_packs<most>(aligned({out, x}), [&]<int N>() { launch(device, convert_kernel<N, To, From>, flat_grid(device, n, N), out, x, n); });
}

}  // namespace

void CudaBackend::convert(Tensor out, Tensor x) {
  if (out.dtype == x.dtype) return copy(out.data, x.data, x.bytes());
  dispatch_float(out.dtype, [&]<class To>() {
    if (x.dtype == Dtype::f16) return convert_to(*device_, out.as<To>(), x.as<const F16>(), x.size());
    dispatch_float(x.dtype, [&]<class From>() {
      if constexpr (!std::is_same_v<To, From>) convert_to(*device_, out.as<To>(), x.as<const From>(), x.size());
    });
  });
}

void CudaBackend::add(Tensor out, Tensor x, Tensor y) {
  dispatch_float(x.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({out.data, x.data, y.data}), [&]<int N>() {
      launch(*device_, add_kernel<N, T, T, T>, flat_grid(*device_, x.size(), N), out.as<T>(), x.as<const T>(), y.as<const T>(), x.size());
    });
  });
}

void CudaBackend::accumulate(Tensor sum, Tensor x) {
  dispatch_float(x.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({sum.data, x.data}), [&]<int N>() {
      launch(*device_, add_kernel<N, float, float, T>, flat_grid(*device_, x.size(), N), sum.as<float>(), sum.as<const float>(),
             x.as<const T>(), x.size());
    });
  });
}

void CudaBackend::add_bias(Tensor y, Tensor bias) {
  dispatch_float(y.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({y.data, bias.data}) && y.cols() % pack_of<T> == 0, [&]<int N>() {
      launch(*device_, add_bias_kernel<N, T>, rows_grid(y.rows(), y.cols() / N), y.as<T>(), bias.as<const T>(), y.rows(), int(y.cols()));
    });
  });
}

void CudaBackend::column_sum(Tensor sum, Tensor x) {
  std::byte* const room = scratch(column_scratch(x.rows(), x.cols()));
  dispatch_float(x.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({x.data}) && x.cols() % pack_of<T> == 0, [&]<int N>() {
      add_columns<N>(*device_, sum.as<float>(), Elements<N, T>{x.as<const T>(), int(x.cols())}, x.rows(), x.cols(), room);
    });
  });
}

}  // namespace tessera::CUDA_SIDE
