#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"

namespace tessera::CUDA_SIDE {
namespace {

// A thread turns N pairs (i, i + half) of a head; `pieces` of them make the rotated half.
template <int N, class T>
__global__ void __launch_bounds__(per_block) rope_kernel(T* x, const float* cos, const float* sin, const int32_t* positions, int64_t tokens,
                                                         int heads, int width, int half, float sign) {
  const int64_t token = row_of_thread();
  if (token >= tokens) return;
  const int pieces = half / N;
  const int64_t angles = int64_t(positions[token]) * half;
  for (int item = int(threadIdx.x); item < heads * pieces; item += int(blockDim.x)) {
    const int head = item / pieces, i = item % pieces * N;
    T* const at = x + (token * heads + head) * width + i;
    float a[N], b[N], c[N], s[N];
    load(a, at);
    load(b, at + half);
    load(c, cos + angles + i);
    load(s, sin + angles + i);
    for (int k = 0; k < N; ++k) {
      const float first = a[k], turn = sign * s[k];
      a[k] = fmaf(-b[k], turn, first * c[k]);
      b[k] = fmaf(first, turn, b[k] * c[k]);
    }
    store(at, a);
    store(at + half, b);
  }
}

}  // namespace

void CudaBackend::rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) {
  const int64_t heads = x.shape.dim[2], width = x.shape.dim[3], half = cos.cols(), tokens = positions.size();
  dispatch_float(x.dtype, [&]<class T>() {
    constexpr int most = pack_of<T>;
    with_packs<most>(aligned({x.data, cos.data, sin.data}) && width % most == 0 && half % most == 0, [&]<int N>() {
      launch(*device_, rope_kernel<N, T>, rows_grid(tokens, heads * (half / N)), x.as<T>(), cos.as<const float>(), sin.as<const float>(),
             positions.as<const int32_t>(), tokens, int(heads), int(width), int(half), inverse ? -1.0f : 1.0f);
    });
  });
}

}  // namespace tessera::CUDA_SIDE
