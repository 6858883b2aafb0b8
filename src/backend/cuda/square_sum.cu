// What the norm of a gradient needs of the sums of its squares: a block of threads for each part, which has every p-th stretch of x.
#include "backend/cuda/cuda.h"
#include "backend/cuda/device.h"
#include "core/whole_units.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int per_block = 256, warps = per_block / warp_size;
constexpr double infinity = __builtin_huge_val();

__global__ void __launch_bounds__(per_block) largest_kernel(double* parts, const double* x, int64_t n) {
  SharedMemory shared;
  double* const of_warp = shared.take<double>(warps);
  double most = 0;
  for (int64_t i = int64_t(blockIdx.x) * per_block + int(threadIdx.x); i < n; i += int64_t(gridDim.x) * per_block) {
    const double v = x[i];
    if (!(v <= most)) most = v < infinity ? v : infinity;
  }
  for (int m = warp_size / 2; m; m /= 2) {
    const double other = __shfl_xor_sync(whole_warp, most, m);
    most = other > most ? other : most;
  }
  if (int(threadIdx.x) % warp_size == 0) of_warp[int(threadIdx.x) / warp_size] = most;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double before = parts[blockIdx.x];
  for (int w = 0; w < warps; ++w) before = of_warp[w] > before ? of_warp[w] : before;
  parts[blockIdx.x] = before;
}

using Wide = unsigned __int128;
__device__ __forceinline__ Wide wide(uint64_t low, uint64_t high) { return static_cast<Wide>(high) << 64 | low; }

__global__ void __launch_bounds__(per_block) sum_units_kernel(uint64_t* parts, const double* x, int64_t n, int exponent) {
  SharedMemory shared;
  uint64_t* const of_warp = shared.take<uint64_t>(2 * warps);
  Wide sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * per_block + int(threadIdx.x); i < n; i += int64_t(gridDim.x) * per_block)
    sum += whole_units(x[i], exponent);
  for (int m = warp_size / 2; m; m /= 2) {
    const auto low = uint64_t(sum), high = uint64_t(sum >> 64);
    sum += wide(__shfl_xor_sync(whole_warp, low, m), __shfl_xor_sync(whole_warp, high, m));
  }
  const int warp = int(threadIdx.x) / warp_size;
  if (int(threadIdx.x) % warp_size == 0) of_warp[warp * 2] = uint64_t(sum), of_warp[warp * 2 + 1] = uint64_t(sum >> 64);
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint64_t* const part = parts + 2 * blockIdx.x;
  Wide all = wide(part[0], part[1]);
  for (int w = 0; w < warps; ++w) all += wide(of_warp[w * 2], of_warp[w * 2 + 1]);
  part[0] = uint64_t(all), part[1] = uint64_t(all >> 64);
}

}  // namespace

void CudaBackend::largest(Tensor parts, Tensor x) {
  launch(*device_, largest_kernel, {dim3(unsigned(parts.size())), dim3(per_block), sizeof(double) * warps}, parts.as<double>(),
         x.as<const double>(), x.size());
}

void CudaBackend::sum_units(Tensor parts, Tensor x, int exponent) {
  launch(*device_, sum_units_kernel, {dim3(unsigned(parts.rows())), dim3(per_block), 2 * sizeof(uint64_t) * warps}, parts.as<uint64_t>(),
         x.as<const double>(), x.size(), exponent);
}

}  // namespace tessera::CUDA_SIDE
