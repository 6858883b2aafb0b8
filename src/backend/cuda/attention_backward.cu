// The gradient of attention in two kernels without atomics: one block sums the gradients of its keys and values over all queries that see
// them, head after head of the group; another the gradients of its queries over their keys. Scores are formed again in both (7 products
// instead of 5 of FlashAttention-2, whose sums over blocks have no order).
//
// Here: keys and values. A warp has 16 keys; a block of eight warps 128 keys and values in shared memory, and 32 queries at a time with
// their gradients, twice, so that the next arrive while these are used: 96 KB at D = 128. Scores are formed as keys x queries, so that
// weights stay in registers and are the first operand of the next product. For 32 queries of size D a warp does 4 * 2 * 16 * 32 * D FLOPs
// and reads 2 * 16 * D (keys, values) + 4 * 32 * D numbers: 13 FLOPs a byte. That is below the 16 of an A100 and the 20 of an H100's
// mma.sync, so shared memory sets the pace (about 0.8 and 0.65 of the products' own). 32 keys in a warp would take 256 registers of sums.
// D = 256: one kernel for the values' sums, one for the keys' (128 registers each); 64 keys in a block and 16 queries at a time.
#include "backend/cuda/attention_tiles.h"
#include "backend/cuda/cuda.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {
namespace {

// --- delta ------------------------------------------------------------------------------------------------------------------------

constexpr int delta_warps = 8;

// A warp for each (b, i, h): delta (B, H, T) = sum of dout * out.
template <class T, int N>
__global__ void __launch_bounds__(delta_warps* warp_size)
    attention_delta_kernel(float* delta, const T* dout, const T* out, const AttentionSizes z, int64_t rows) {
  const int lane = int(threadIdx.x) % warp_size;
  const int64_t row = int64_t(blockIdx.x) * delta_warps + int(threadIdx.x) / warp_size;
  float sum = 0;
  if (row < rows)
    for (int d = lane * N; d < z.width; d += warp_size * N) {
      const auto x = *reinterpret_cast<const Pack<T, N>*>(dout + row * z.width + d);
      const auto y = *reinterpret_cast<const Pack<T, N>*>(out + row * z.width + d);
      for (int i = 0; i < N; ++i) sum = fmaf(value_of(x.at[i]), value_of(y.at[i]), sum);
    }
  sum = warp_sum(sum);
  const int64_t h = row % z.heads, i = row / z.heads % z.queries, b = row / z.heads / z.queries;
  if (row < rows && lane == 0) delta[(b * z.heads + h) * z.queries + i] = sum;
}

template <class T, int N>
void form_delta(Device& device, const AttentionTensors& t, const AttentionSizes& z) {
  const int64_t rows = t.lse.size();
  launch(device, attention_delta_kernel<T, N>, {dim3(unsigned((rows + delta_warps - 1) / delta_warps)), dim3(delta_warps * warp_size)},
         t.delta.as<float>(), t.dout.as<const T>(), t.out.as<const T>(), z, rows);
}

// --- keys and values --------------------------------------------------------------------------------------------------------------

enum class Sums { both, keys, values };

template <int D>
struct KeyTile {
  static constexpr int warps = D == 256 ? 4 : 8, threads = warps * warp_size;
  static constexpr int keys = warps * 16, queries = D == 256 ? 16 : 32;
  static constexpr size_t shared = size_t(2 * keys + 4 * queries) * D * 2 + 2 * 3 * queries * sizeof(float) + 64 + 16;
};

template <class T>
struct KeyArrays {
  T *dk, *dv;
  const T *q, *k, *v, *dout;
  const float *lse, *delta;
  const int* starts;
};

// What the block knows of the queries of a tile: one value for each, kept by its first threads until the tile before is done.
struct QueryFacts {
  float lse = 0, delta = 0;  // lse in powers of two
  int first = INT_MAX;       // visible key
};
// Where they lie in shared memory, for two tiles.
template <int queries>
struct QueryRows {
  float *lse, *delta;
  int *first, *extremes;  // extremes: the least and the largest first of the queries that exist

  __device__ __forceinline__ explicit QueryRows(SharedMemory& shared)
      : lse(shared.take<float>(2 * queries)),
        delta(shared.take<float>(2 * queries)),
        first(shared.take<int>(2 * queries)),
        extremes(shared.take<int>(4)) {}
  // REQUIRES: queries <= warp_size; by the first warp.
  __device__ __forceinline__ void put(int half, const QueryFacts& x) const {
    if (threadIdx.x >= warp_size) return;
    const int lane = int(threadIdx.x);
    if (lane < queries) {
      lse[half * queries + lane] = x.lse;
      delta[half * queries + lane] = x.delta;
      first[half * queries + lane] = x.first;
    }
    const int least = warp_min(x.first), most = warp_max(x.first);
    if (lane == 0) extremes[half * 2] = least, extremes[half * 2 + 1] = most;
  }
};

template <class T, int D, Sums sums>
__global__ void __launch_bounds__(KeyTile<D>::threads) attention_dkdv_kernel(const KeyArrays<T> to, const AttentionSizes z) {
  using Shape = KeyTile<D>;
  constexpr int Q = Shape::queries, N = Q / 8, threads = Shape::threads;
  constexpr bool with_keys = sums != Sums::values, with_values = sums != Sums::keys;
  SharedMemory shared;
  T* const keys = shared.take<T>(Shape::keys * D);
  T* const values = shared.take<T>(Shape::keys * D);
  T* const queries = shared.take<T>(2 * Q * D);
  T* const douts = shared.take<T>(2 * Q * D);
  const QueryRows<Q> facts(shared);
  const int lane = int(threadIdx.x) % warp_size, warp_key = int(threadIdx.x) / warp_size * 16;
  const int group = z.heads / z.key_heads, key_head = int(blockIdx.y), begin = int(blockIdx.x) * Shape::keys;
  const size_t b = blockIdx.z, query_stride = size_t(z.heads) * size_t(z.width), key_stride = size_t(z.key_heads) * size_t(z.width);
  const size_t key_offset = (b * size_t(z.keys) + size_t(begin)) * key_stride + size_t(key_head) * size_t(z.width);
  const int* const starts = to.starts + b * size_t(z.queries);

  int last = warp_max(last_query_below(z, starts, begin, begin + Shape::keys, int(threadIdx.x), threads));
  if (lane == 0) facts.first[threadIdx.x / warp_size] = last;
  __syncthreads();
  for (int w = 0; w < Shape::warps; ++w) last = most(last, facts.first[w]);
  __syncthreads();
  const int first_tile = begin / Q, tiles = last / Q + 1 - first_tile, steps = tiles * group;

  const auto begin_of = [&](int step) { return (first_tile + step % tiles) * Q; };
  const auto copy_queries = [&](int step) {
    const int i = begin_of(step), at = step % 2 * Q * D;
    const size_t offset = (b * size_t(z.queries) + size_t(i)) * query_stride + size_t(key_head * group + step / tiles) * size_t(z.width);
    copy_tile<D, Q, threads>(queries + at, to.q + offset, query_stride, z.queries - i, z.width);
    copy_tile<D, Q, threads>(douts + at, to.dout + offset, query_stride, z.queries - i, z.width);
    copies_commit();
  };
  const auto facts_of = [&](int step) {
    QueryFacts x;
    const int i = begin_of(step) + int(threadIdx.x);
    if (int(threadIdx.x) >= Q || i >= z.queries) return x;
    const size_t at = (b * size_t(z.heads) + size_t(key_head * group + step / tiles)) * size_t(z.queries) + size_t(i);
    x.lse = to.lse[at] * log2_e;
    x.delta = to.delta[at];
    x.first = first_key(z, starts, i);
    return x;
  };

  float dk[1][D / 8][4], dv[1][D / 8][4];
  if constexpr (with_keys) set_zero(dk);
  if constexpr (with_values) set_zero(dv);
  copy_tile<D, Shape::keys, threads>(keys, to.k + key_offset, key_stride, z.keys - begin, z.width);
  if constexpr (with_keys) copy_tile<D, Shape::keys, threads>(values, to.v + key_offset, key_stride, z.keys - begin, z.width);
  copy_queries(0);
  facts.put(0, facts_of(0));
  const float factor = z.scale * log2_e;
  for (int step = 0; step < steps; ++step) {
    const int half = step % 2, at = half * Q * D, key = begin + warp_key, query = begin_of(step);
    copies_wait<0>();
    __syncthreads();
    QueryFacts next;
    if (step + 1 < steps) {
      copy_queries(step + 1);
      next = facts_of(step + 1);
    }
    if (facts.extremes[half * 2] < key + 16 && query + Q > key) {
      float p[1][N][4];
      set_zero(p);
      add_row_products<D>(p, keys, warp_key, queries + at);
      const bool all = facts.extremes[half * 2 + 1] <= key && query >= key + 15;
      each_sum<1, N>([&](int m, int n, int i, int row, int column) {
        p[m][n][i] = power_of_two(fmaf(p[m][n][i], factor, -facts.lse[half * Q + column]));
        if (!all && (key + row < facts.first[half * Q + column] || key + row > query + column)) p[m][n][i] = 0;
      });
      if constexpr (with_values) add_weighted_rows<D>(dv, p, douts + at);
      if constexpr (with_keys) {
        float dp[1][N][4];
        set_zero(dp);
        add_row_products<D>(dp, values, warp_key, douts + at);
        each_sum<1, N>([&](int m, int n, int i, int, int column) { p[m][n][i] *= dp[m][n][i] - facts.delta[half * Q + column]; });
        add_weighted_rows<D>(dk, p, queries + at);
      }
    }
    facts.put(1 - half, next);
  }
  copies_wait<0>();
  __syncthreads();

  const auto row_of = [&](T* x) {
    return [=](int row) { return begin + warp_key + row < z.keys ? x + key_offset + size_t(warp_key + row) * key_stride : nullptr; };
  };
  if constexpr (with_keys) {
    each_sum<1, D / 8>([&](int m, int n, int i, int, int) { dk[m][n][i] *= z.scale; });
    store_rows<D>(dk, keys, warp_key, z.width, row_of(to.dk));
  }
  if constexpr (with_values) store_rows<D>(dv, values, warp_key, z.width, row_of(to.dv));
}

template <class T, int D, Sums sums>
void launch_dkdv(Device& device, const AttentionTensors& t, const AttentionSizes& z) {
  using Shape = KeyTile<D>;
  const dim3 blocks(unsigned((z.keys + Shape::keys - 1) / Shape::keys), unsigned(z.key_heads), unsigned(t.q.shape.dim[0]));
  const KeyArrays<T> to = {t.dk.as<T>(),
                           t.dv.as<T>(),
                           t.q.as<const T>(),
                           t.k.as<const T>(),
                           t.v.as<const T>(),
                           t.dout.as<const T>(),
                           t.lse.as<const float>(),
                           t.delta.as<const float>(),
                           t.starts.as<const int>()};
  launch(device, attention_dkdv_kernel<T, D, sums>, {blocks, dim3(Shape::threads), Shape::shared}, to, z);
}

void tiled_dkdv(Device& device, const AttentionTensors& t, const AttentionSizes& z) {
  dispatch_tiles(t.q.dtype, z.width, [&]<class T, int D>() {
    if constexpr (D == 256) {
      launch_dkdv<T, D, Sums::values>(device, t, z);
      launch_dkdv<T, D, Sums::keys>(device, t, z);
    } else {
      launch_dkdv<T, D, Sums::both>(device, t, z);
    }
  });
}

}  // namespace

void CudaBackend::attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                                     Tensor starts, AttentionShape shape) {
  const AttentionSizes z = attention_sizes(q, k, shape);
  Tensor delta = lse;
  delta.data = scratch(attention_scratch(q.shape.dim[0], z.queries, z.heads));
  const AttentionTensors t = {out, lse, q, k, v, starts, dout, dq, dk, dv, delta};
  const bool tiles = on_tensor_cores(t);
  dispatch_any_float(q.dtype, [&]<class T>() { tiles ? form_delta<T, 4>(*device_, t, z) : form_delta<T, 1>(*device_, t, z); });
  if (!tiles) return plain_attention_backward(*device_, t, z);
  tiled_dkdv(*device_, t, z);
  tiled_attention_dq(*device_, t, z);
}

}  // namespace tessera::CUDA_SIDE
