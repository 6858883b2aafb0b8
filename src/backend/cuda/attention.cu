// Attention in blocks of queries that walk over blocks of keys with a running softmax (FlashAttention-2, Dao 2023, algorithm 1).
//
// A block of four warps has 128 queries of a head, a warp 32 of them, and takes 32 keys at a time (64 at D = 64). For 32 keys of size D a
// warp does 2 * 2 * 32 * 32 * D FLOPs (two products) and reads 32 * D numbers of each of keys, queries and values from shared memory: at
// D = 128 0.52 MFLOP for 24 KB, 21 FLOPs a byte. An A100 multiprocessor does 2,048 FLOPs and reads 128 bytes a cycle, 16 FLOPs a byte, an
// H100 by mma.sync about 20; with 16 queries in a warp (13 FLOPs a byte) shared memory would set the pace. 32 queries take 128 registers
// of sums and 32 of scores; 64 keys at a time would spill. D = 256 has room for 16 queries a warp, 64 a block.
// Shared memory: the queries, and two tiles each of keys and values, so that the next arrive while these are used: 48 KB at D = 64 and 96,
// 64 KB at 128, 96 KB at 256. Two blocks run on a multiprocessor of sm_80 and sm_90 (registers allow two; D = 256: one on sm_80), and on
// sm_86 and sm_89, where a block may have 99 KB of 100, two at D <= 96 and one above.
// Blocks begin with the last queries, which see the most keys. Keys before the first document of the block, or behind its window, or after
// its last query are not read; a warp passes over keys that none of its queries sees.
//
// Few queries (generate): a block is one warp and its 16 rows are the queries of all heads that share a key head; the keys are split among
// blocks so that all multiprocessors read, and a second kernel joins the parts in order.
#include <algorithm>

#include "backend/cuda/attention_tiles.h"
#include "backend/cuda/cuda.h"

namespace tessera::CUDA_SIDE {
namespace {

template <class T>
struct Forward {
  T* out;
  float* lse;
  const T *q, *k, *v;
  const int* starts;
  float* parts;  // of few queries: (B, H, Tq, splits, width + 2): sums, then the largest score and the sum of weights
  int splits;
};

// The tile's shape. Few: rows are (query, head of the group), the group fastest.
template <int D, bool few>
struct ForwardTile {
  static constexpr int warps = few ? 1 : 4;
  static constexpr int fragments = few || D == 256 ? 1 : 2;  // of 16 queries
  static constexpr int queries = warps * fragments * 16;
  static constexpr int keys = D == 64 ? 64 : 32;
  static constexpr size_t shared = size_t(queries + 4 * keys) * D * 2;  // keys and values, twice
};

// The running softmax of a lane's rows. Weights are 2^(score - reference); the reference follows the largest score, but only when that is
// more than 2^8 away, so that few tiles cost a multiplication of all sums.
template <int M>
struct Softmax {
  float reference[M][2], weight[M][2];  // weight: the sum of this lane's columns

  __device__ __forceinline__ Softmax() {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) reference[m][h] = no_score, weight[m][h] = 0;
  }

  // Turns scores into weights; sum is what has been added up so far. factor: makes powers of two of scores.
  template <int N, int columns>
  __device__ __forceinline__ void add(float (&s)[M][N][4], float (&sum)[M][columns][4], float factor) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = no_score;
#pragma unroll
        for (int n = 0; n < N; ++n) most = fmaxf(most, fmaxf(s[m][n][h * 2], s[m][n][h * 2 + 1]));
        for (int step = 1; step < 4; step *= 2) most = fmaxf(most, __shfl_xor_sync(whole_warp, most, step));
        const bool moves = (most - reference[m][h]) * factor > 8;
        if (__ballot_sync(whole_warp, moves)) {
          const float old = reference[m][h];
          if (moves) reference[m][h] = most;
          const float shrink = power_of_two(old * factor - reference[m][h] * factor);
          weight[m][h] *= shrink;
#pragma unroll
          for (int d = 0; d < columns; ++d) sum[m][d][h * 2] *= shrink, sum[m][d][h * 2 + 1] *= shrink;
        }
        const float shift = reference[m][h] * factor;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int i = h * 2; i < h * 2 + 2; ++i) {
            s[m][n][i] = power_of_two(fmaf(s[m][n][i], factor, -shift));
            weight[m][h] += s[m][n][i];
          }
      }
  }
};

template <class T, int D, bool few>
__global__ void __launch_bounds__(ForwardTile<D, few>::warps* warp_size) attention_kernel(const Forward<T> to, const AttentionSizes z) {
  using Shape = ForwardTile<D, few>;
  constexpr int M = Shape::fragments, N = Shape::keys / 8, threads = Shape::warps * warp_size;
  SharedMemory shared;
  T* const queries = shared.take<T>(Shape::queries * D);
  T* const keys = shared.take<T>(2 * Shape::keys * D);
  T* const values = shared.take<T>(2 * Shape::keys * D);
  const int lane = int(threadIdx.x) % warp_size, warp_row = int(threadIdx.x) / warp_size * M * 16;
  const int group = z.heads / z.key_heads;
  const size_t b = blockIdx.z;
  const int split = few ? int(blockIdx.x) % to.splits : 0;
  const int first_row = (few ? int(blockIdx.x) / to.splits : int(gridDim.x - 1 - blockIdx.x)) * Shape::queries;
  const int key_head = few ? int(blockIdx.y) : int(blockIdx.y) / group;
  const auto query_of = [&](int row) { return few ? (first_row + row) / group : first_row + row; };
  const auto head_of = [&](int row) { return few ? key_head * group + (first_row + row) % group : int(blockIdx.y); };
  const auto query_offset = [&](int row) {
    return ((b * size_t(z.queries) + size_t(query_of(row))) * size_t(z.heads) + size_t(head_of(row))) * size_t(z.width);
  };
  const auto query_row = [&](int row) { return query_of(row) < z.queries ? to.q + query_offset(row) : nullptr; };
  const size_t key_stride = size_t(z.key_heads) * size_t(z.width);
  const size_t key_offset = b * size_t(z.keys) * key_stride + size_t(key_head) * size_t(z.width);
  const int* const starts = to.starts + b * size_t(z.queries);

  Seen block;
  for (int row = lane; row < Shape::queries; row += warp_size)
    if (const int i = query_of(row); i < z.queries) block.add(first_key(z, starts, i), last_key(z, i));
  block.join_warp();
  int tile = block.least_first / Shape::keys, end = block.most_last / Shape::keys + 1;
  if (few) {
    const int share = (end - tile + to.splits - 1) / to.splits;
    tile += split * share;
    end = least(end, tile + share);
  }

  Seen warp;
  int first[M][2];  // visible key of this lane's rows
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = query_of(warp_row + m * 16 + lane / 4 + h * 8);
      first[m][h] = INT_MAX;
      if (i < z.queries) warp.add(first[m][h] = first_key(z, starts, i), last_key(z, i));
    }
  warp.join_warp();

  const auto copy_keys = [&](int tile) {
    const int begin = tile * Shape::keys, at = tile % 2 * Shape::keys * D;
    const size_t offset = key_offset + size_t(begin) * key_stride;
    copy_tile<D, Shape::keys, threads>(keys + at, to.k + offset, key_stride, z.keys - begin, z.width);
    copy_tile<D, Shape::keys, threads>(values + at, to.v + offset, key_stride, z.keys - begin, z.width);
    copies_commit();
  };
  const float factor = z.scale * log2_e;
  float sum[M][D / 8][4];
  set_zero(sum);
  Softmax<M> softmax;

  copy_rows<D, Shape::queries, threads>(queries, to.q, z.width, query_row);
  if (tile < end) copy_keys(tile);
  for (; tile < end; ++tile) {
    const int begin = tile * Shape::keys, at = tile % 2 * Shape::keys * D;
    copies_wait<0>();
    __syncthreads();
    if (tile + 1 < end) copy_keys(tile + 1);
    if (!warp.any(begin, begin + Shape::keys)) continue;
    float s[M][N][4];
    set_zero(s);
    add_row_products<D>(s, queries, warp_row, keys + at);
    if (!warp.all(begin, begin + Shape::keys))
      each_sum<M, N>([&](int m, int n, int i, int row, int column) {
        if (begin + column < first[m][i / 2] || begin + column > last_key(z, query_of(warp_row + row))) s[m][n][i] = -INFINITY;
      });
    softmax.add(s, sum, factor);
    add_weighted_rows<D>(sum, s, values + at);
  }
  copies_wait<0>();
  __syncthreads();

#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float all = softmax.weight[m][h];
      for (int step = 1; step < 4; step *= 2) all += __shfl_xor_sync(whole_warp, all, step);
      const int row = warp_row + m * 16 + lane / 4 + h * 8;
      if (query_of(row) >= z.queries) continue;
      const size_t at = (b * size_t(z.heads) + size_t(head_of(row))) * size_t(z.queries) + size_t(query_of(row));
      if constexpr (few) {
        float* const part = to.parts + (at * size_t(to.splits) + size_t(split)) * size_t(z.width + 2);
#pragma unroll
        for (int d = 0; d < D / 8; ++d)
          if (const int column = d * 8 + lane % 4 * 2; column < z.width) {
            part[column] = sum[m][d][h * 2];
            part[column + 1] = sum[m][d][h * 2 + 1];
          }
        if (lane % 4 == 0) part[z.width] = softmax.reference[m][h], part[z.width + 1] = all;
      } else {
        const float share = 1 / all;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) sum[m][d][h * 2] *= share, sum[m][d][h * 2 + 1] *= share;
        if (lane % 4 == 0) to.lse[at] = fmaf(softmax.reference[m][h], z.scale, logf(all));
      }
    }
  if constexpr (!few)
    store_rows<D>(sum, queries, warp_row, z.width,
                  [&](int row) { return query_of(warp_row + row) < z.queries ? to.out + query_offset(warp_row + row) : nullptr; });
}

constexpr int join_threads = 128;

// A block for each (b, h, query).
template <class T>
__global__ void __launch_bounds__(join_threads) attention_join_kernel(const Forward<T> to, const AttentionSizes z) {
  const size_t at = blockIdx.x, stride = size_t(z.width + 2);
  const float* const parts = to.parts + at * size_t(to.splits) * stride;
  const float factor = z.scale * log2_e;
  float most = no_score;
  for (int s = 0; s < to.splits; ++s) most = fmaxf(most, parts[size_t(s) * stride + size_t(z.width)]);
  const auto share_of = [&](int s) { return power_of_two((parts[size_t(s) * stride + size_t(z.width)] - most) * factor); };
  float weight = 0;
  for (int s = 0; s < to.splits; ++s) weight = fmaf(share_of(s), parts[size_t(s) * stride + size_t(z.width) + 1], weight);
  const size_t i = at % size_t(z.queries), head = at / size_t(z.queries) % size_t(z.heads), b = at / size_t(z.queries) / size_t(z.heads);
  T* const out = to.out + ((b * size_t(z.queries) + i) * size_t(z.heads) + head) * size_t(z.width);
  for (int d = int(threadIdx.x); d < z.width; d += join_threads) {
    float sum = 0;
    for (int s = 0; s < to.splits; ++s) sum = fmaf(share_of(s), parts[size_t(s) * stride + size_t(d)], sum);
    out[d] = rounded<T>(sum / weight);
  }
  if (threadIdx.x == 0) to.lse[at] = fmaf(most, z.scale, logf(weight));
}

constexpr int most_few = 8;  // queries

template <class T>
Forward<T> forward_of(const AttentionTensors& t) {
  return {t.out.as<T>(), t.lse.as<float>(), t.q.as<const T>(), t.k.as<const T>(), t.v.as<const T>(), t.starts.as<const int>(), nullptr, 1};
}

unsigned parts_of(int count, int size) { return unsigned((count + size - 1) / size); }

template <class T, int D>
void tiled(Device& device, const AttentionTensors& t, const AttentionSizes& z) {
  using Shape = ForwardTile<D, false>;
  const unsigned batch = unsigned(t.q.shape.dim[0]);
  launch(device, attention_kernel<T, D, false>,
         {dim3(parts_of(z.queries, Shape::queries), unsigned(z.heads), batch), dim3(Shape::warps * warp_size), Shape::shared},
         forward_of<T>(t), z);
}

template <class T, int D>
void tiled_few(Device& device, const AttentionTensors& t, const AttentionSizes& z, int splits, std::byte* scratch) {
  using Shape = ForwardTile<D, true>;
  const unsigned batch = unsigned(t.q.shape.dim[0]), tiles = parts_of(z.queries * (z.heads / z.key_heads), Shape::queries);
  Forward<T> to = forward_of<T>(t);
  to.parts = reinterpret_cast<float*>(scratch);
  to.splits = splits;
  launch(device, attention_kernel<T, D, true>,
         {dim3(tiles * unsigned(splits), unsigned(z.key_heads), batch), dim3(Shape::warps * warp_size), Shape::shared}, to, z);
  launch(device, attention_join_kernel<T>, {dim3(unsigned(t.lse.size())), dim3(join_threads)}, to, z);
}

// Enough blocks for each multiprocessor to have four, each with two tiles of keys or more.
int splits_of(const AttentionSizes& z, int64_t batch, int multiprocessors) {
  const int64_t blocks = batch * z.key_heads * parts_of(z.queries * (z.heads / z.key_heads), 16);
  return int(std::clamp<int64_t>(4 * multiprocessors / std::max<int64_t>(blocks, 1), 1, parts_of(z.keys, 128)));
}

}  // namespace

AttentionSizes attention_sizes(Tensor q, Tensor k, AttentionShape shape) {
  const int keys = int(k.shape.dim[1]);
  const int window = shape.window ? int(std::min<int64_t>(shape.window, keys)) : keys;
  return {int(q.shape.dim[1]), keys, int(q.shape.dim[2]), int(k.shape.dim[2]), int(q.shape.dim[3]), window, shape.scale};
}

bool on_tensor_cores(const AttentionTensors& t) {
  if (t.q.dtype == Dtype::f32) return false;
  for (const Tensor& x : {t.out, t.q, t.k, t.v, t.dout, t.dq, t.dk, t.dv})
    if (reinterpret_cast<uintptr_t>(x.data) % 16) return false;
  const int64_t width = t.q.shape.dim[3];
  return width == 64 || width == 80 || width == 96 || width == 128 || width == 256;
}

void CudaBackend::attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  AttentionTensors t{};
  t.out = out, t.lse = lse, t.q = q, t.k = k, t.v = v, t.starts = starts;
  const AttentionSizes z = attention_sizes(q, k, shape);
  if (!on_tensor_cores(t)) return plain_attention(*device_, t, z);
  if (z.queries > most_few) return dispatch_tiles(q.dtype, z.width, [&]<class T, int D>() { tiled<T, D>(*device_, t, z); });
  const int splits = splits_of(z, q.shape.dim[0], multiprocessors(*device_));
  std::byte* const parts = scratch(size_t(lse.size()) * size_t(splits) * size_t(z.width + 2) * sizeof(float));
  dispatch_tiles(q.dtype, z.width, [&]<class T, int D>() { tiled_few<T, D>(*device_, t, z, splits, parts); });
}

}  // namespace tessera::CUDA_SIDE
