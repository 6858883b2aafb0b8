// Attention for f32 and for head sizes that have no kernels for tensor cores: small models and checks. The same blocks and running softmax,
// products in f32: a lane has a key (or, for the gradients of keys and values, a query) when scores are formed, and columns of the head
// when rows are summed. Tiles lie in shared memory with an odd distance of rows, so that lanes meet different banks both ways.
#include "backend/cuda/attention_tiles.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int warps = 4, per_block = warps * warp_size, across = warp_size;  // across: keys, or queries, of a tile
constexpr int forward_rows = 16, backward_rows = 8, row_room = across + 1;

template <class T>
struct Arrays {
  T *out, *dq, *dk, *dv;
  const T *q, *k, *v, *dout;
  float* lse;
  const float* delta;
  const int* starts;
};

__host__ __device__ constexpr int odd(int width) { return width | 1; }

// Where things lie: query (b, i, h), key (b, j, head).
struct Places {
  const AttentionSizes& z;
  size_t b;
  __device__ size_t query(int i, int h) const {
    return ((b * size_t(z.queries) + size_t(i)) * size_t(z.heads) + size_t(h)) * size_t(z.width);
  }
  __device__ size_t key(int j, int h) const {
    return ((b * size_t(z.keys) + size_t(j)) * size_t(z.key_heads) + size_t(h)) * size_t(z.width);
  }
  __device__ size_t per_query(int i, int h) const { return (b * size_t(z.heads) + size_t(h)) * size_t(z.queries) + size_t(i); }
};

// Rows [0, count), zeros up to `rows`. A barrier before and after.
template <class T>
__device__ void load_rows(float* to, const T* from, size_t distance, int count, int rows, int width) {
  __syncthreads();
  for (int i = int(threadIdx.x); i < rows * width; i += per_block) {
    const int row = i / width, d = i % width;
    to[row * odd(width) + d] = row < count ? value_of(from[size_t(row) * distance + size_t(d)]) : 0.0f;
  }
  __syncthreads();
}

__device__ float dot(const float* x, const float* y, int width) {
  float sum = 0;
  for (int d = 0; d < width; ++d) sum = fmaf(x[d], y[d], sum);
  return sum;
}

// to[d] = to[d] * factor + sum over i of weights[i] * x[i][d], lanes side by side.
__device__ void add_rows(float* to, float factor, const float* weights, const float* x, int width) {
  for (int d = int(threadIdx.x) % warp_size; d < width; d += warp_size) {
    float sum = to[d] * factor;
    for (int i = 0; i < across; ++i) sum = fmaf(weights[i], x[i * odd(width) + d], sum);
    to[d] = sum;
  }
}

// What the queries [begin, end) see, in every lane.
__device__ Seen seen_by(const AttentionSizes& z, const int* starts, int begin, int end) {
  Seen seen;
  for (int i = begin + int(threadIdx.x) % warp_size; i < end; i += warp_size) seen.add(first_key(z, starts, i), last_key(z, i));
  seen.join_warp();
  return seen;
}

template <class T>
__global__ void __launch_bounds__(per_block) attention_plain_kernel(const Arrays<T> a, const AttentionSizes z) {
  constexpr int mine = forward_rows / warps;
  SharedMemory shared;
  const int room = odd(z.width), lane = int(threadIdx.x) % warp_size, first_row = int(threadIdx.x) / warp_size * mine;
  float* const queries = shared.take<float>(forward_rows * room);
  float* const sums = shared.take<float>(forward_rows * room);
  float* const rows = shared.take<float>(across * room);
  float* const weights = shared.take<float>(forward_rows * row_room);
  const int h = int(blockIdx.y), kh = h / (z.heads / z.key_heads), begin = int(blockIdx.x) * forward_rows;
  const int count = least(forward_rows, z.queries - begin);
  const Places at{z, blockIdx.z};
  const int* const starts = a.starts + at.b * size_t(z.queries);
  const size_t query_step = size_t(z.heads) * size_t(z.width), key_step = size_t(z.key_heads) * size_t(z.width);
  for (int i = int(threadIdx.x); i < forward_rows * room; i += per_block) sums[i] = 0;
  load_rows(queries, a.q + at.query(begin, h), query_step, count, forward_rows, z.width);

  float largest[mine], weight[mine], shrink[mine];
  for (int r = 0; r < mine; ++r) largest[r] = no_score, weight[r] = 0;
  const Seen seen = seen_by(z, starts, begin, begin + count);
  for (int j = seen.least_first / across * across; j <= seen.most_last; j += across) {
    load_rows(rows, a.k + at.key(j, kh), key_step, z.keys - j, across, z.width);
    for (int r = 0; r < mine; ++r) {
      const int row = first_row + r, i = begin + row, key = j + lane;
      const bool sees = row < count && key >= first_key(z, starts, i) && key <= last_key(z, i);
      const float score = sees ? dot(queries + row * room, rows + lane * room, z.width) * z.scale : -INFINITY;
      const float most = fmaxf(largest[r], warp_max(score)), w = sees ? expf(score - most) : 0.0f;
      shrink[r] = expf(largest[r] - most);
      largest[r] = most;
      weight[r] = weight[r] * shrink[r] + warp_sum(w);
      weights[row * row_room + lane] = w;
    }
    load_rows(rows, a.v + at.key(j, kh), key_step, z.keys - j, across, z.width);
    for (int r = 0; r < mine; ++r) add_rows(sums + (first_row + r) * room, shrink[r], weights + (first_row + r) * row_room, rows, z.width);
  }
  for (int r = 0; r < mine && first_row + r < count; ++r) {
    const int i = begin + first_row + r;
    for (int d = lane; d < z.width; d += warp_size)
      a.out[at.query(i, h) + size_t(d)] = rounded<T>(sums[(first_row + r) * room + d] / weight[r]);
    if (lane == 0) a.lse[at.per_query(i, h)] = largest[r] + logf(weight[r]);
  }
}

template <class T>
__global__ void __launch_bounds__(per_block) attention_plain_dq_kernel(const Arrays<T> a, const AttentionSizes z) {
  constexpr int mine = backward_rows / warps;
  SharedMemory shared;
  const int room = odd(z.width), lane = int(threadIdx.x) % warp_size, first_row = int(threadIdx.x) / warp_size * mine;
  float* const queries = shared.take<float>(backward_rows * room);
  float* const douts = shared.take<float>(backward_rows * room);
  float* const sums = shared.take<float>(backward_rows * room);
  float* const rows = shared.take<float>(across * room);
  float* const weights = shared.take<float>(backward_rows * row_room);
  const int h = int(blockIdx.y), kh = h / (z.heads / z.key_heads), begin = int(blockIdx.x) * backward_rows;
  const int count = least(backward_rows, z.queries - begin);
  const Places at{z, blockIdx.z};
  const int* const starts = a.starts + at.b * size_t(z.queries);
  const size_t query_step = size_t(z.heads) * size_t(z.width), key_step = size_t(z.key_heads) * size_t(z.width);
  for (int i = int(threadIdx.x); i < backward_rows * room; i += per_block) sums[i] = 0;
  load_rows(queries, a.q + at.query(begin, h), query_step, count, backward_rows, z.width);
  load_rows(douts, a.dout + at.query(begin, h), query_step, count, backward_rows, z.width);

  const Seen seen = seen_by(z, starts, begin, begin + count);
  for (int j = seen.least_first / across * across; j <= seen.most_last; j += across) {
    float w[mine];
    load_rows(rows, a.k + at.key(j, kh), key_step, z.keys - j, across, z.width);
    for (int r = 0; r < mine; ++r) {
      const int row = first_row + r, i = begin + row, key = j + lane;
      const bool sees = row < count && key >= first_key(z, starts, i) && key <= last_key(z, i);
      w[r] = sees ? expf(dot(queries + row * room, rows + lane * room, z.width) * z.scale - a.lse[at.per_query(i, h)]) : 0.0f;
    }
    load_rows(rows, a.v + at.key(j, kh), key_step, z.keys - j, across, z.width);
    for (int r = 0; r < mine; ++r) {
      const int row = first_row + r;
      const float delta = row < count ? a.delta[at.per_query(begin + row, h)] : 0.0f;
      const float dp = w[r] == 0.0f ? 0.0f : dot(douts + row * room, rows + lane * room, z.width) - delta;
      weights[row * row_room + lane] = w[r] * dp * z.scale;
    }
    load_rows(rows, a.k + at.key(j, kh), key_step, z.keys - j, across, z.width);
    for (int r = 0; r < mine; ++r) add_rows(sums + (first_row + r) * room, 1, weights + (first_row + r) * row_room, rows, z.width);
  }
  for (int r = 0; r < mine && first_row + r < count; ++r)
    for (int d = lane; d < z.width; d += warp_size)
      a.dq[at.query(begin + first_row + r, h) + size_t(d)] = rounded<T>(sums[(first_row + r) * room + d]);
}

template <class T>
__global__ void __launch_bounds__(per_block) attention_plain_dkdv_kernel(const Arrays<T> a, const AttentionSizes z) {
  constexpr int mine = backward_rows / warps;
  SharedMemory shared;
  const int room = odd(z.width), lane = int(threadIdx.x) % warp_size, first_row = int(threadIdx.x) / warp_size * mine;
  float* const keys = shared.take<float>(backward_rows * room);
  float* const values = shared.take<float>(backward_rows * room);
  float* const dkeys = shared.take<float>(backward_rows * room);
  float* const dvalues = shared.take<float>(backward_rows * room);
  float* const rows = shared.take<float>(across * room);
  float* const weights = shared.take<float>(backward_rows * row_room);
  const int kh = int(blockIdx.y), group = z.heads / z.key_heads, begin = int(blockIdx.x) * backward_rows;
  const int count = least(backward_rows, z.keys - begin);
  const Places at{z, blockIdx.z};
  const int* const starts = a.starts + at.b * size_t(z.queries);
  const size_t query_step = size_t(z.heads) * size_t(z.width), key_step = size_t(z.key_heads) * size_t(z.width);
  for (int i = int(threadIdx.x); i < backward_rows * room; i += per_block) dkeys[i] = dvalues[i] = 0;
  load_rows(keys, a.k + at.key(begin, kh), key_step, count, backward_rows, z.width);
  load_rows(values, a.v + at.key(begin, kh), key_step, count, backward_rows, z.width);

  const int last = warp_max(last_query_below(z, starts, begin, begin + count, lane, warp_size));
  for (int h = kh * group; h < (kh + 1) * group; ++h)
    for (int i0 = begin / across * across; i0 <= last; i0 += across) {
      const int i = i0 + lane;
      const bool exists = i < z.queries;
      const int first = exists ? first_key(z, starts, i) : INT_MAX;
      const float lse = exists ? a.lse[at.per_query(i, h)] : 0.0f, delta = exists ? a.delta[at.per_query(i, h)] : 0.0f;
      float w[mine];
      load_rows(rows, a.q + at.query(i0, h), query_step, z.queries - i0, across, z.width);
      for (int r = 0; r < mine; ++r) {
        const int row = first_row + r, key = begin + row;
        const bool sees = row < count && key >= first && key <= i;
        w[r] = sees ? expf(dot(keys + row * room, rows + lane * room, z.width) * z.scale - lse) : 0.0f;
        weights[row * row_room + lane] = w[r];
      }
      load_rows(rows, a.dout + at.query(i0, h), query_step, z.queries - i0, across, z.width);
      for (int r = 0; r < mine; ++r) {
        const int row = first_row + r;
        add_rows(dvalues + row * room, 1, weights + row * row_room, rows, z.width);
        const float dp = w[r] == 0.0f ? 0.0f : dot(values + row * room, rows + lane * room, z.width) - delta;
        __syncwarp();
        weights[row * row_room + lane] = w[r] * dp * z.scale;
      }
      load_rows(rows, a.q + at.query(i0, h), query_step, z.queries - i0, across, z.width);
      for (int r = 0; r < mine; ++r) add_rows(dkeys + (first_row + r) * room, 1, weights + (first_row + r) * row_room, rows, z.width);
    }
  for (int r = 0; r < mine && first_row + r < count; ++r)
    for (int d = lane; d < z.width; d += warp_size) {
      const size_t to = at.key(begin + first_row + r, kh) + size_t(d);
      a.dk[to] = rounded<T>(dkeys[(first_row + r) * room + d]);
      a.dv[to] = rounded<T>(dvalues[(first_row + r) * room + d]);
    }
}

template <class T>
Arrays<T> arrays_of(const AttentionTensors& t) {
  return {t.out.as<T>(),           t.dq.as<T>(),      t.dk.as<T>(),         t.dv.as<T>(),      t.q.as<const T>(),
          t.k.as<const T>(),       t.v.as<const T>(), t.dout.as<const T>(), t.lse.as<float>(), t.delta.as<const float>(),
          t.starts.as<const int>()};
}

dim3 blocks_of(int count, int rows, int heads, const AttentionTensors& t) {
  return dim3(unsigned((count + rows - 1) / rows), unsigned(heads), unsigned(t.q.shape.dim[0]));
}

size_t shared_of(int rows, int weight_rows, const AttentionSizes& z) {
  constexpr int most_width = 384;
  if (z.width > most_width)
    fail("attention on device cuda", str("head size ", z.width), str("1 to ", most_width),
         "use --device cpu, or a model with smaller heads");
  return size_t(rows * odd(z.width) + weight_rows * row_room) * sizeof(float) + 16 * 6;  // arrays begin at multiples of 16
}

}  // namespace

void plain_attention(Device& device, const AttentionTensors& t, const AttentionSizes& z) {
  const size_t shared = shared_of(2 * forward_rows + across, forward_rows, z);
  dispatch_any_float(t.q.dtype, [&]<class T>() {
    launch(device, attention_plain_kernel<T>, {blocks_of(z.queries, forward_rows, z.heads, t), dim3(per_block), shared}, arrays_of<T>(t),
           z);
  });
}

void plain_attention_backward(Device& device, const AttentionTensors& t, const AttentionSizes& z) {
  const size_t dkdv_shared = shared_of(4 * backward_rows + across, backward_rows, z);
  const size_t dq_shared = shared_of(3 * backward_rows + across, backward_rows, z);
  dispatch_any_float(t.q.dtype, [&]<class T>() {
    launch(device, attention_plain_dkdv_kernel<T>, {blocks_of(z.keys, backward_rows, z.key_heads, t), dim3(per_block), dkdv_shared},
           arrays_of<T>(t), z);
    launch(device, attention_plain_dq_kernel<T>, {blocks_of(z.queries, backward_rows, z.heads, t), dim3(per_block), dq_shared},
           arrays_of<T>(t), z);
  });
}

}  // namespace tessera::CUDA_SIDE
