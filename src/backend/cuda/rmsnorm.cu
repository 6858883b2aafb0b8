// Memory is read once where a row fits in the registers of a block (cols <= 8192 in f32, 16384 in bf16); short rows have a warp each.
#include "backend/cuda/columns.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int held = 4;  // packs of a row in one thread's registers: number threadIdx.x + j * blockDim.x
constexpr int most_threads = 512, most_warps = most_threads / warp_size;

enum class Fits { warp, block, no };

template <Fits fits>
__device__ __forceinline__ float row_sum(float x, float* warps) {
  if constexpr (fits == Fits::warp) return warp_sum(x);
  return block_sum(x, warps);
}

// The packs of a row that are this thread's, from registers or from memory. f(number, pack).
template <class T, int N, Fits fits>
struct Row {
  using P = Pack<T, N>;
  const P* from;
  int packs;
  P mine[fits == Fits::no ? 1 : held];

  __device__ __forceinline__ Row(const T* row, int cols) : from(reinterpret_cast<const P*>(row)), packs(cols / N) {
    if constexpr (fits != Fits::no) {
#pragma unroll
      for (int j = 0; j < held; ++j) {
        const int i = int(threadIdx.x) + j * int(blockDim.x);
        if (i < packs) mine[j] = from[i];
      }
    }
  }
};

// f(i, j) for each pack i of this thread, where j is its place in the registers.
template <Fits fits, class F>
__device__ __forceinline__ void for_row(int packs, F&& f) {
  if constexpr (fits == Fits::no) {
    for (int i = int(threadIdx.x); i < packs; i += int(blockDim.x)) f(i, 0);
  } else {
#pragma unroll
    for (int j = 0; j < held; ++j) {
      const int i = int(threadIdx.x) + j * int(blockDim.x);
      if (i < packs) f(i, j);
    }
  }
}
template <class T, int N, Fits fits>
__device__ __forceinline__ void values(float (&to)[N], const Row<T, N, fits>& row, int i, int j) {
  if constexpr (fits == Fits::no) {
    load(to, reinterpret_cast<const T*>(row.from + i));
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) to[k] = value_of(row.mine[j].at[k]);
  }
}

template <Fits fits, int N, class T>
__global__ void __launch_bounds__(most_threads)
    rmsnorm_kernel(T* out, float* rstd, const T* x, const T* w, int64_t rows, int cols, float eps) {
  SharedMemory shared;
  float* const warps = shared.take<float>(most_warps);
  const int64_t row = row_of_thread(), from = (row < rows ? row : rows - 1) * cols;
  const Row<T, N, fits> mine(x + from, cols);
  float sum = 0;
  for_row<fits>(cols / N, [&](int i, int j) {
    float v[N];
    values(v, mine, i, j);
    for (int k = 0; k < N; ++k) sum = fmaf(v[k], v[k], sum);
  });
  sum = row_sum<fits>(sum, warps);
  if (row >= rows) return;
  const float scale = 1.0f / sqrtf(sum / float(cols) + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
  for_row<fits>(cols / N, [&](int i, int j) {
    float v[N], weight[N];
    values(v, mine, i, j);
    load(weight, w + i * N);
    for (int k = 0; k < N; ++k) v[k] = value_of(rounded<T>(v[k] * scale)) * weight[k];
    store(out + from + i * N, v);
  });
}

// dx = rstd * (g - n * mean(g * n)) with g = dy * w, n = x * rstd.
template <Fits fits, bool accumulates, int N, class T>
__global__ void __launch_bounds__(most_threads)
    rmsnorm_backward_kernel(T* dx, const T* dy, const T* x, const T* w, const float* rstd, int64_t rows, int cols) {
  SharedMemory shared;
  float* const warps = shared.take<float>(most_warps);
  const int64_t row = row_of_thread(), valid = row < rows ? row : rows - 1, from = valid * cols;
  const float scale = rstd[valid];
  const Row<T, N, fits> my_x(x + from, cols), my_dy(dy + from, cols);
  float sum = 0;
  for_row<fits>(cols / N, [&](int i, int j) {
    float v[N], d[N], weight[N];
    values(v, my_x, i, j);
    values(d, my_dy, i, j);
    load(weight, w + i * N);
    for (int k = 0; k < N; ++k) sum = fmaf(d[k] * weight[k], v[k], sum);
  });
  const float mean = row_sum<fits>(sum, warps) * scale / float(cols);
  if (row >= rows) return;
  for_row<fits>(cols / N, [&](int i, int j) {
    float v[N], d[N], weight[N], before[N] = {};
    values(v, my_x, i, j);
    values(d, my_dy, i, j);
    load(weight, w + i * N);
    T* const to = dx + from + i * N;
    if constexpr (accumulates) load(before, to);
    for (int k = 0; k < N; ++k) {
      const float gradient = scale * fmaf(-(v[k] * scale), mean, d[k] * weight[k]);
      v[k] = accumulates ? before[k] + gradient : gradient;
    }
    store(to, v);
  });
}

// dy * n, n as the forward pass had it.
template <int N, class T>
struct WeightTerms {
  const T *dy, *x;
  const float* rstd;
  int cols;
  __device__ void operator()(float (&terms)[N], int64_t row, int col) const {
    float v[N];
    load(terms, dy + row * cols + col);
    load(v, x + row * cols + col);
    for (int k = 0; k < N; ++k) terms[k] *= value_of(rounded<T>(v[k] * rstd[row]));
  }
};

// Calls f.operator()<fits>(grid).
template <class F>
void by_length(int64_t rows, int64_t packs, F&& f) {
  const size_t shared = most_warps * sizeof(float);
  if (packs <= warp_size * held) {
    constexpr unsigned rows_of_block = per_block / warp_size;
    return f.template operator()<Fits::warp>(
        Grid{dim3(unsigned((rows + rows_of_block - 1) / rows_of_block)), dim3(warp_size, rows_of_block), shared});
  }
  const int64_t threads = (packs + warp_size * held - 1) / (warp_size * held) * warp_size;
  const Grid grid{dim3(unsigned(rows)), dim3(unsigned(std::min<int64_t>(threads, most_threads))), shared};
  if (threads <= most_threads) return f.template operator()<Fits::block>(grid);
  f.template operator()<Fits::no>(grid);
}

}  // namespace

void CudaBackend::rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
  dispatch_float(x.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({out.data, x.data, w.data}) && x.cols() % pack_of<T> == 0, [&]<int N>() {
      by_length(x.rows(), x.cols() / N, [&]<Fits fits>(const Grid& grid) {
        launch(*device_, rmsnorm_kernel<fits, N, T>, grid, out.as<T>(), rstd.as<float>(), x.as<const T>(), w.as<const T>(), x.rows(),
               int(x.cols()), eps);
      });
    });
  });
}

void CudaBackend::rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool dx_accumulates) {
  const int64_t rows = x.rows(), cols = x.cols();
  std::byte* const room = dw.empty() ? nullptr : scratch(column_scratch(rows, cols));
  dispatch_float(x.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({dx.data, dy.data, x.data, w.data}) && cols % pack_of<T> == 0, [&]<int N>() {
      if (!dw.empty())
        add_columns<N>(*device_, dw.as<float>(), WeightTerms<N, T>{dy.as<const T>(), x.as<const T>(), rstd.as<const float>(), int(cols)},
                       rows, cols, room);
      by_length(rows, cols / N, [&]<Fits fits>(const Grid& grid) {
        const auto kernel = dx_accumulates ? rmsnorm_backward_kernel<fits, true, N, T> : rmsnorm_backward_kernel<fits, false, N, T>;
        launch(*device_, kernel, grid, dx.as<T>(), dy.as<const T>(), x.as<const T>(), w.as<const T>(), rstd.as<const float>(), rows,
               int(cols));
      });
    });
  });
}

}  // namespace tessera::CUDA_SIDE
