// The sum of narrow products: c is wide and written once, t and a come from the second-level cache.
//
// A block of four warps has 64 rows and 128 columns of c, a warp 32 and 64. It brings the 64 rows of all t and the 128 columns of all a to
// shared memory at once, 384 bytes for each of all ranks: 25 KB for four adapters of rank 16, 97 KB at most. Without dropout the ranks of
// all adapters are one depth; with it each adapter has accumulators of its own, which its mask and factor take to the sum, and the depth
// of each is filled up to 16. In an mma the columns of a are dealt so that a lane's accumulators are neighbours in c: it forms whole masks
// (four columns from one Philox) and whole stores of 16 bytes, and the four lanes of a row store 64 bytes side by side.
// What is added is on its way while the products are formed. Registers allow five blocks on a multiprocessor, three with dropout.
#include <algorithm>

#include "backend/cuda/adapters.h"
#include "backend/cuda/drop_mask.h"
#include "backend/cuda/packs.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int rows = int(adapter_rows), cols = int(adapter_cols);
constexpr int warps = 4, threads = warps * warp_size, warp_rows = 32, warp_cols = 64;
static_assert(rows / warp_rows * (cols / warp_cols) == warps);

template <class T>
struct SumPart {
  const T *t, *a;
  DropMask drop;
  float factor;
};

template <class T, class C>
struct Sum {
  C* c;
  const C* add;
  SumPart<T> part[AdapterProduct::most];
  int count, m, k, rank;
  int step, depth;  // from the ranks of one adapter to those of the next; of all together, a multiple of 16
  float alpha, beta;
};

// The tile of a: 8 numbers are a chunk. Chunks of rows 2t of four lanes t lie in different banks.
__device__ __forceinline__ int place(int row, int chunk) { return (row * (cols / 8) + (chunk ^ (row >> 1 & 3))) * 8; }

// Tiles t (rows, depth), rows `stride` apart, and a (depth, cols); zero where there is no row, column or rank.
template <class T, class C>
__device__ __forceinline__ void copy_parts(T* t, T* a, int stride, const Sum<T, C>& s, int first_row, int first_col) {
  const int thread = int(threadIdx.x), row = thread / 2, chunk = thread % (cols / 8), col = first_col + chunk * 8;
#pragma unroll 1
  for (int p = 0; p < s.count; ++p) {
    const int begin = p * s.step, end = p + 1 < s.count ? s.step : s.depth - begin;
    const T *const from_t = s.part[p].t, *const from_a = s.part[p].a;
    for (int i = thread % 2 * 8; i < end; i += 16) {
      const bool valid = i < s.rank && first_row + row < s.m;
      copy_to_shared(t + row * stride + begin + i, valid ? from_t + size_t(first_row + row) * size_t(s.rank) + i : from_t, valid);
    }
    for (int i = thread / (cols / 8); i < end; i += threads / (cols / 8)) {
      const bool valid = i < s.rank && col < s.k;
      copy_to_shared(a + place(begin + i, chunk), valid ? from_a + size_t(i) * size_t(s.k) + col : from_a, valid);
    }
  }
}

// Which of a warp's columns is column g of its j-th mma. Lane t has columns g = 2t and 2t + 1 of all eight: runs of neighbours, and the
// runs of lanes 0 to 3 beside each other.
template <int run>
__device__ __forceinline__ int column_of(int g, int j) {
  return ((g % 2 * (8 / run) + j / run) * 4 + g / 2) * run + j % run;
}

// sum += 16 rows of t from `row` on times 64 columns of a from `col` on, in depth [begin, end).
template <int run, class T>
__device__ __forceinline__ void add_products(float (&sum)[8][4], const T* t, const T* a, int stride, int row, int col, int begin, int end) {
  const int lane = int(threadIdx.x) % warp_size;
  const T* from[8 / run];
#pragma unroll
  for (int u = 0; u < 8 / run; ++u) {
    const int column = col + column_of<run>(lane / 4, u * run);
    from[u] = a + place(lane % 4 * 2, column / 8) + column % 8;
  }
#pragma unroll 1
  for (int k = begin; k < end; k += 16) {
    uint32_t fa[4], pairs[4][8 / run][run / 2];  // pairs: of rows 2t, 2t + 1, 2t + 8, 2t + 9
    load_tiles(fa, t + (row + lane % 16) * stride + k + lane / 16 * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int u = 0; u < 8 / run; ++u) {
        const auto pack = *reinterpret_cast<const Pack<uint32_t, run / 2>*>(from[u] + (k + i % 2 + i / 2 * 8) * cols);
#pragma unroll
        for (int w = 0; w < run / 2; ++w) pairs[i][u][w] = pack.at[w];
      }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t fb[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t even = pairs[i * 2][j / run][j % run / 2], odd = pairs[i * 2 + 1][j / run][j % run / 2];
        fb[i] = j % 2 ? even >> 16 | (odd & 0xffff0000u) : (even & 0xffffu) | odd << 16;
      }
      mma<T>(sum[j], fa, fb);
    }
  }
}

// sum += factor * what is kept of x. rows: of this lane's rows g and g + 8.
template <int run, class T>
__device__ __forceinline__ void add_kept(float (&sum)[8][4], const float (&x)[8][4], const SumPart<T>& part, const MaskRow (&rows)[2],
                                         int col) {
  const int lane = int(threadIdx.x) % warp_size;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        const Mask4 mask = mask_of(part.drop, rows[h], col + column_of<run>(lane % 4 * 2 + e, j));
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (mask.pair[i / 2] >> i % 2 * 16 & 1) sum[j + i][h * 2 + e] = fmaf(x[j + i][h * 2 + e], part.factor, sum[j + i][h * 2 + e]);
      }
}

// Numbers that wait in registers as they came: as a Pack<Bf16, 8> they would wait as eight floats.
using Bytes16 = Pack<uint32_t, 4>;
template <class C>
__device__ __forceinline__ float value_in(const Bytes16& bytes, int i) {
  if constexpr (sizeof(C) == 4) {
    return from_bits(bytes.at[i]);
  } else {
    C x;
    x.bits = uint16_t(bytes.at[i / 2] >> i % 2 * 16);
    return value_of(x);
  }
}

template <class T, class C, bool masked>
__global__ void __launch_bounds__(threads, masked ? 3 : 5) adapters_sum_kernel(const Sum<T, C> s) {
  constexpr int run = pack_of<C>;
  SharedMemory shared;
  const int stride = s.depth + 8;  // an odd number of chunks
  T* const t = shared.take<T>(rows * stride);
  T* const a = shared.take<T>(s.depth * cols);
  const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
  const int tiles = (s.k + cols - 1) / cols, first_row = int(blockIdx.x) / tiles * rows, first_col = int(blockIdx.x) % tiles * cols;
  const int warp_col = warp % (cols / warp_cols) * warp_cols;
  copy_parts(t, a, stride, s, first_row, first_col);
  copies_commit();

#pragma unroll 1
  for (int done = 0; done < warp_rows; done += 16) {
    const int tile_row = warp / (cols / warp_cols) * warp_rows + done;
    const int row_of[2] = {first_row + tile_row + lane / 4, first_row + tile_row + lane / 4 + 8};
    // Calls f(h, e, j, at) for each run of this lane that exists: accumulators [j to j + run - 1][h * 2 + e], and its place in c.
    const auto each_run = [&](auto f) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int e = 0; e < 2; ++e)
#pragma unroll
          for (int j = 0; j < 8; j += run) {
            const int col = first_col + warp_col + column_of<run>(lane % 4 * 2 + e, j);
            if (row_of[h] < s.m && col < s.k) f(h, e, j, size_t(row_of[h]) * size_t(s.k) + size_t(col));
          }
    };
    Bytes16 old[2][2][8 / run] = {};  // on their way while the products are formed
    if (s.beta != 0) each_run([&](int h, int e, int j, size_t at) { old[h][e][j / run] = *reinterpret_cast<const Bytes16*>(s.add + at); });
    if (done == 0) {
      copies_wait<0>();
      __syncthreads();
    }

    float sum[8][4] = {};
    if constexpr (masked) {
#pragma unroll 1
      for (int p = 0; p < s.count; ++p) {
        const SumPart<T>& part = s.part[p];
        MaskRow mask_rows[2] = {};  // where nothing is dropped the threshold is 0, and any row will do
        if (part.drop.row_keys)
          for (int h = 0; h < 2; ++h) mask_rows[h] = mask_row(part.drop, row_of[h] < s.m ? row_of[h] : s.m - 1);
        float one[8][4] = {};
        add_products<run>(one, t, a, stride, tile_row, warp_col, p * s.step, (p + 1) * s.step);
        add_kept<run>(sum, one, part, mask_rows, first_col + warp_col);
      }
    } else {
      add_products<run>(sum, t, a, stride, tile_row, warp_col, 0, s.depth);
    }

    each_run([&](int h, int e, int j, size_t at) {
      float v[run];
#pragma unroll
      for (int i = 0; i < run; ++i) {
        v[i] = s.alpha * sum[j + i][h * 2 + e];
        if (s.beta != 0) v[i] = fmaf(s.beta, value_in<C>(old[h][e][j / run], i), v[i]);
      }
      store(s.c + at, v);
    });
  }
}

template <class T, class C>
void launch_sum(Device& device, Tensor c, std::span<const AdapterProduct> all, float alpha, float beta, const void* add) {
  const int64_t m = c.rows(), k = c.cols();
  const bool masked = std::any_of(all.begin(), all.end(), [](const AdapterProduct& p) { return p.drop.p > 0; });
  const auto whole = [](int depth) { return (depth + 15) / 16 * 16; };
  Sum<T, C> s{};
  s.c = c.as<C>(), s.add = static_cast<const C*>(add), s.alpha = alpha, s.beta = beta;
  s.m = int(m), s.k = int(k), s.rank = int(all[0].a.rows());
  for (const AdapterProduct& p : all)
    s.part[s.count++] = {p.t.as<const T>(), p.a.as<const T>(), drop_mask(p.drop, m, k), drop_factor(p.drop)};
  s.step = masked ? whole(s.rank) : s.rank;
  s.depth = whole(s.count * s.step);
  const size_t shared = size_t(rows * (s.depth + 8) + s.depth * cols) * sizeof(T);
  const int64_t blocks = (m + rows - 1) / rows * ((k + cols - 1) / cols);
  launch(device, masked ? adapters_sum_kernel<T, C, true> : adapters_sum_kernel<T, C, false>,
         {dim3(unsigned(blocks)), dim3(threads), shared}, s);
}

}  // namespace

void adapters_sum(Device& device, Tensor c, std::span<const AdapterProduct> all, float alpha, float beta, const void* add) {
  const auto of_type = [&]<class T>() {
    if (c.dtype == Dtype::f32) return launch_sum<T, float>(device, c, all, alpha, beta, add);
    launch_sum<T, T>(device, c, all, alpha, beta, add);
  };
  if (all[0].a.dtype == Dtype::f16) return of_type.template operator()<F16>();
  of_type.template operator()<Bf16>();
}

}  // namespace tessera::CUDA_SIDE
