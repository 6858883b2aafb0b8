// The gradient of attention's queries (attention_backward.cu has the rest). A block of eight warps has 128 queries with their gradients in
// shared memory, a warp 16 of them, and takes 32 keys and values at a time, twice, so that the next arrive while these are used: 96 KB at
// D = 128. For 32 keys of size D a warp does 3 * 2 * 16 * 32 * D FLOPs and reads 2 * 16 * D + 3 * 32 * D numbers: 12 FLOPs a byte, so
// shared memory sets the pace. D = 256: 64 queries in a block, 16 keys at a time.
#include "backend/cuda/attention_tiles.h"

namespace tessera::CUDA_SIDE {
namespace {

template <int D>
struct QueryTile {
  static constexpr int warps = D == 256 ? 4 : 8, threads = warps * warp_size;
  static constexpr int queries = warps * 16, keys = D == 256 ? 16 : 32;
  static constexpr size_t shared = size_t(2 * queries + 4 * keys) * D * 2;
};

template <class T>
struct QueryArrays {
  T* dq;
  const T *q, *k, *v, *dout;
  const float *lse, *delta;
  const int* starts;
};

template <class T, int D>
__global__ void __launch_bounds__(QueryTile<D>::threads) attention_dq_kernel(const QueryArrays<T> to, const AttentionSizes z) {
  using Shape = QueryTile<D>;
  constexpr int N = Shape::keys / 8, threads = Shape::threads;
  SharedMemory shared;
  T* const queries = shared.take<T>(Shape::queries * D);
  T* const douts = shared.take<T>(Shape::queries * D);
  T* const keys = shared.take<T>(2 * Shape::keys * D);
  T* const values = shared.take<T>(2 * Shape::keys * D);
  const int lane = int(threadIdx.x) % warp_size, warp_row = int(threadIdx.x) / warp_size * 16;
  const int h = int(blockIdx.y), key_head = h / (z.heads / z.key_heads);
  const int begin = int(gridDim.x - 1 - blockIdx.x) * Shape::queries, count = least(Shape::queries, z.queries - begin);
  const size_t b = blockIdx.z, query_stride = size_t(z.heads) * size_t(z.width), key_stride = size_t(z.key_heads) * size_t(z.width);
  const size_t query_offset = (b * size_t(z.queries) + size_t(begin)) * query_stride + size_t(h) * size_t(z.width);
  const size_t key_offset = b * size_t(z.keys) * key_stride + size_t(key_head) * size_t(z.width);
  const int* const starts = to.starts + b * size_t(z.queries);

  Seen block, warp;
  for (int row = lane; row < count; row += warp_size) block.add(first_key(z, starts, begin + row), last_key(z, begin + row));
  block.join_warp();
  float lse[2] = {0, 0}, delta[2] = {0, 0};  // of this lane's rows; lse in powers of two
  int first[2] = {INT_MAX, INT_MAX};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = begin + warp_row + lane / 4 + r * 8;
    if (i >= z.queries) continue;
    const size_t at = (b * size_t(z.heads) + size_t(h)) * size_t(z.queries) + size_t(i);
    lse[r] = to.lse[at] * log2_e;
    delta[r] = to.delta[at];
    first[r] = first_key(z, starts, i);
    warp.add(first[r], last_key(z, i));
  }
  warp.join_warp();

  const auto copy_keys = [&](int tile) {
    const int j = tile * Shape::keys, at = tile % 2 * Shape::keys * D;
    const size_t offset = key_offset + size_t(j) * key_stride;
    copy_tile<D, Shape::keys, threads>(keys + at, to.k + offset, key_stride, z.keys - j, z.width);
    copy_tile<D, Shape::keys, threads>(values + at, to.v + offset, key_stride, z.keys - j, z.width);
    copies_commit();
  };
  const float factor = z.scale * log2_e;
  float dq[1][D / 8][4];
  set_zero(dq);
  copy_tile<D, Shape::queries, threads>(queries, to.q + query_offset, query_stride, count, z.width);
  copy_tile<D, Shape::queries, threads>(douts, to.dout + query_offset, query_stride, count, z.width);
  int tile = block.least_first / Shape::keys;
  const int end = block.most_last / Shape::keys + 1;
  copy_keys(tile);
  for (; tile < end; ++tile) {
    const int key = tile * Shape::keys, at = tile % 2 * Shape::keys * D;
    copies_wait<0>();
    __syncthreads();
    if (tile + 1 < end) copy_keys(tile + 1);
    if (!warp.any(key, key + Shape::keys)) continue;
    float p[1][N][4], dp[1][N][4];
    set_zero(p);
    add_row_products<D>(p, queries, warp_row, keys + at);
    const bool all = warp.all(key, key + Shape::keys);
    each_sum<1, N>([&](int m, int n, int i, int row, int column) {
      p[m][n][i] = power_of_two(fmaf(p[m][n][i], factor, -lse[i / 2]));
      if (!all && (key + column < first[i / 2] || key + column > last_key(z, begin + warp_row + row))) p[m][n][i] = 0;
    });
    set_zero(dp);
    add_row_products<D>(dp, douts, warp_row, values + at);
    each_sum<1, N>([&](int m, int n, int i, int, int) { p[m][n][i] *= dp[m][n][i] - delta[i / 2]; });
    add_weighted_rows<D>(dq, p, keys + at);
  }
  copies_wait<0>();
  __syncthreads();
  each_sum<1, D / 8>([&](int m, int n, int i, int, int) { dq[m][n][i] *= z.scale; });
  store_rows<D>(dq, queries, warp_row, z.width,
                [&](int row) { return warp_row + row < count ? to.dq + query_offset + size_t(warp_row + row) * query_stride : nullptr; });
}

}  // namespace

void tiled_attention_dq(Device& device, const AttentionTensors& t, const AttentionSizes& z) {
  dispatch_tiles(t.q.dtype, z.width, [&]<class T, int D>() {
    using Shape = QueryTile<D>;
    const dim3 blocks(unsigned((z.queries + Shape::queries - 1) / Shape::queries), unsigned(z.heads), unsigned(t.q.shape.dim[0]));
    const QueryArrays<T> to = {t.dq.as<T>(),         t.q.as<const T>(),       t.k.as<const T>(),         t.v.as<const T>(),
                               t.dout.as<const T>(), t.lse.as<const float>(), t.delta.as<const float>(), t.starts.as<const int>()};
    launch(device, attention_dq_kernel<T, D>, {blocks, dim3(Shape::threads), Shape::shared}, to, z);
  });
}

}  // namespace tessera::CUDA_SIDE
