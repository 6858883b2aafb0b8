// Narrow products of a wide matrix x (m, k), which is read once for up to three adapters: t = x a^T, and da = t^T x. Each block leaves
// partial sums of its piece of x; a second kernel adds the pieces in order.
//
// Which columns stand where in a fragment is free as long as both operands agree. Here a lane has four neighbouring columns of a row of x:
// one read of 8 bytes, and one Philox where dropout masks them.
#include <algorithm>
#include <cmath>

#include "backend/cuda/adapters.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/drop_mask.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {
namespace {

constexpr int per_block = 128;
constexpr int most_together = 3;  // adapters of one launch: q, k, v

template <class T>
struct Narrow {
  const T* matrix[most_together];  // a (r, k), or t (m, r)
  DropMask drop[most_together];
  int count, r;
};

using Words2 = Pack<uint32_t, 2>;  // four neighbours

// A chunk is 16 bytes. Rows of `chunks` of them; `turn` keeps the rows that a quarter of a warp reads together in different banks.
template <int chunks>
__device__ __forceinline__ int place(int row, int chunk, int turn) {
  return (row * chunks + (chunk ^ (turn & 3) << 1)) * 8;
}

// --- t = x a^T ------------------------------------------------------------------------------------------------------------------------

constexpr int rows = int(adapter_rows), cols = 64;  // of x in a step

__device__ __forceinline__ int place_col(int row, int chunk) { return place<cols / 8>(row, chunk, row); }

// Rows [0, count) of a matrix of k columns, `to` rows of them in shared memory, columns [col, end).
template <class T>
__device__ __forceinline__ void fetch_rows(T* to, const T* from, int64_t first, int64_t count, int number, int64_t k, int64_t col,
                                           int64_t end) {
  for (int i = int(threadIdx.x); i < number * (cols / 8); i += per_block) {
    const int row = i / (cols / 8), chunk = i % (cols / 8);
    const bool valid = first + row < count && col + chunk * 8 < end;
    copy_to_shared(to + place_col(row, chunk), valid ? from + (first + row) * k + col + chunk * 8 : from, valid);
  }
}

// sums[i][j] += 16 rows of x times ranks 8 j to 8 j + 7 of adapter i; x from row x_row on, a from its first.
template <int tiles, bool masked, class T>
__device__ __forceinline__ void multiply(float (&sums)[most_together][tiles][4], const T* x, const T* a, const Narrow<T>& narrow,
                                         const MaskRow (&mask)[most_together][2], int64_t col) {
  const int lane = int(threadIdx.x) % warp_size, g = lane / 4, t = lane % 4, x_row = int(threadIdx.x) / warp_size * 16 + g;
  const auto four = [&](const T* tile, int row, int step) {
    return *reinterpret_cast<const Words2*>(tile + place_col(row, step * 2 + t / 2) + t % 2 * 4);
  };
#pragma unroll
  for (int step = 0; step < cols / 16; ++step) {
    const Words2 low = four(x, x_row, step), high = four(x, x_row + 8, step);
#pragma unroll
    for (int i = 0; i < most_together; ++i) {
      if (i >= narrow.count) break;
      uint32_t fragment[4] = {low.at[0], high.at[0], low.at[1], high.at[1]};
      if constexpr (masked) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Mask4 keep = mask_of(narrow.drop[i], mask[i][h], int(col) + step * 16 + t * 4);
          fragment[h] &= keep.pair[0], fragment[h + 2] &= keep.pair[1];
        }
      }
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        if (j * 8 >= narrow.r) break;
        const Words2 of_a = four(a, i * narrow.r + j * 8 + g, step);
        const uint32_t b[2] = {of_a.at[0], of_a.at[1]};
        mma<T>(sums[i][j], fragment, b);
      }
    }
  }
}

// A block has `rows` rows of x and, of its columns, the stretch blockIdx.y.
template <int tiles, int stages, bool masked, class T>
__global__ void __launch_bounds__(per_block)
    adapters_kernel(float* parts, const T* x, const Narrow<T> narrow, int m, int64_t k, int64_t stretch) {
  SharedMemory shared;
  const int of_a = narrow.count * narrow.r;
  T* const xs = shared.take<T>(stages * rows * cols);
  T* const as = shared.take<T>(stages * of_a * cols);
  const int64_t begin = int64_t(blockIdx.y) * stretch, end = begin + stretch < k ? begin + stretch : k;
  const int first = int(blockIdx.x) * rows, steps = int((end - begin + cols - 1) / cols);
  const auto fetch = [&](int step) {
    if (step < steps) {
      const int stage = step % stages;
      const int64_t col = begin + step * cols;
      fetch_rows(xs + stage * rows * cols, x, first, m, rows, k, col, end);
#pragma unroll
      for (int i = 0; i < most_together; ++i)
        if (i < narrow.count) fetch_rows(as + (stage * of_a + i * narrow.r) * cols, narrow.matrix[i], 0, narrow.r, narrow.r, k, col, end);
    }
    copies_commit();
  };

  const int lane = int(threadIdx.x) % warp_size, row = first + int(threadIdx.x) / warp_size * 16 + lane / 4;
  MaskRow mask[most_together][2] = {};
  if constexpr (masked) {
#pragma unroll
    for (int i = 0; i < most_together; ++i)
      for (int h = 0; h < 2; ++h)
        if (i < narrow.count) mask[i][h] = mask_row(narrow.drop[i], row + h * 8 < m ? row + h * 8 : m - 1);
  }
  float sums[most_together][tiles][4] = {};
  for (int step = 0; step < stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    copies_wait<stages - 2>();
    __syncthreads();
    fetch(step + stages - 1);
    const int stage = step % stages;
    multiply<tiles, masked>(sums, xs + stage * rows * cols, as + stage * of_a * cols, narrow, mask, begin + step * cols);
  }

#pragma unroll
  for (int i = 0; i < most_together; ++i)
#pragma unroll
    for (int j = 0; j < tiles; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (i >= narrow.count || j * 8 >= narrow.r || row + h * 8 >= m) continue;
        const int64_t at = ((int64_t(blockIdx.y) * narrow.count + i) * m + row + h * 8) * narrow.r + j * 8 + lane % 4 * 2;
        *reinterpret_cast<Pack<float, 2>*>(parts + at) = {sums[i][j][h * 2], sums[i][j][h * 2 + 1]};
      }
}

// --- da = t^T x -----------------------------------------------------------------------------------------------------------------------

constexpr int wide = int(adapter_cols), deep = 32;  // columns of x of a block, rows of a step
constexpr int gradient_stages = 4;

__device__ __forceinline__ int place_row(int row, int chunk) { return place<wide / 8>(row, chunk, row >> 1); }

// The low or the high halves of two words.
__device__ __forceinline__ uint32_t low_pair(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
__device__ __forceinline__ uint32_t high_pair(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// A block has `wide` columns of x and the rows of stretch blockIdx.y. In the columns of a warp, column 4 c + n stands at c of tile n.
template <int tiles, bool masked, class T>
__global__ void __launch_bounds__(per_block)
    adapters_gradient_kernel(float* parts, const T* x, const Narrow<T> narrow, int m, int64_t k, int stretch) {
  constexpr int together = tiles > 2 ? 1 : most_together, stages = gradient_stages;
  SharedMemory shared;
  const int of_rank = narrow.r / 8, chunks = narrow.count * of_rank, pitch = (chunks | 1) * 8;
  T* const xs = shared.take<T>(stages * deep * wide);
  T* const ts = shared.take<T>(stages * deep * pitch);
  const int64_t first_col = int64_t(blockIdx.x) * wide;
  const int begin = int(blockIdx.y) * stretch, end = begin + stretch < m ? begin + stretch : m, steps = (end - begin + deep - 1) / deep;
  const auto fetch = [&](int step) {
    if (step < steps) {
      T* const to_x = xs + step % stages * deep * wide;
      T* const to_t = ts + step % stages * deep * pitch;
      const int first = begin + step * deep;
      for (int i = int(threadIdx.x); i < deep * (wide / 8); i += per_block) {
        const int row = i / (wide / 8), chunk = i % (wide / 8);
        const bool valid = first + row < end && first_col + chunk * 8 < k;
        copy_to_shared(to_x + place_row(row, chunk), valid ? x + (first + row) * k + first_col + chunk * 8 : x, valid);
      }
#pragma unroll
      for (int a = 0; a < together; ++a)
        for (int i = int(threadIdx.x); a < narrow.count && i < deep * of_rank; i += per_block) {
          const int row = i / of_rank, chunk = i % of_rank;
          const T* const from = narrow.matrix[a] + int64_t(first + row) * narrow.r + chunk * 8;
          copy_to_shared(to_t + row * pitch + (a * of_rank + chunk) * 8, first + row < end ? from : narrow.matrix[a], first + row < end);
        }
    }
    copies_commit();
  };

  const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size, g = lane / 4, t = lane % 4;
  const int col = warp * 32 + 4 * g;
  float sums[together][tiles][4][4] = {};
  for (int step = 0; step < stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    copies_wait<stages - 2>();
    __syncthreads();
    fetch(step + stages - 1);
    const T* const x_tile = xs + step % stages * deep * wide;
    const T* const t_tile = ts + step % stages * deep * pitch;
#pragma unroll
    for (int half = 0; half < deep; half += 16) {
      Words2 four[4];  // of rows 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
      for (int q = 0; q < 4; ++q)
        four[q] = *reinterpret_cast<const Words2*>(x_tile + place_row(half + t * 2 + q % 2 + q / 2 * 8, col / 8) + g % 2 * 4);
#pragma unroll
      for (int i = 0; i < together; ++i) {
        if (i >= narrow.count) break;
        Words2 kept[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          kept[q] = four[q];
          if constexpr (masked) {
            const int row = begin + step * deep + half + t * 2 + q % 2 + q / 2 * 8;
            const Mask4 keep = mask_of(narrow.drop[i], mask_row(narrow.drop[i], row < m ? row : m - 1), int(first_col) + col);
            kept[q].at[0] &= keep.pair[0], kept[q].at[1] &= keep.pair[1];
          }
        }
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
          if (j * 16 >= narrow.r) break;
          uint32_t fragment[4];  // t^T; ranks past the last one are those before, and their sums go nowhere
          const int chunk = j * 2 + lane / 8 % 2;
          load_tiles_transposed(
              fragment, t_tile + (half + lane % 8 + lane / 16 * 8) * pitch + (i * of_rank + (chunk < of_rank ? chunk : of_rank - 1)) * 8);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const auto pair = [&](int q) {
              return n % 2 ? high_pair(kept[q].at[n / 2], kept[q + 1].at[n / 2]) : low_pair(kept[q].at[n / 2], kept[q + 1].at[n / 2]);
            };
            const uint32_t b[2] = {pair(0), pair(2)};
            mma<T>(sums[i][j][n], fragment, b);
          }
        }
      }
    }
  }

  // A lane has eight neighbours of ranks g and g + 8.
  const int64_t at_col = first_col + warp * 32 + t * 8;
#pragma unroll
  for (int i = 0; i < together; ++i)
#pragma unroll
    for (int j = 0; j < tiles; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int rank = j * 16 + g + h * 8;
        if (i >= narrow.count || rank >= narrow.r || at_col >= k) continue;
        float* const to = parts + ((int64_t(blockIdx.y) * narrow.count + i) * narrow.r + rank) * k + at_col;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto& s = sums[i][j];
          *reinterpret_cast<Pack<float, 4>*>(to + e * 4) = {s[0][h * 2 + e], s[1][h * 2 + e], s[2][h * 2 + e], s[3][h * 2 + e]};
        }
      }
}

// --- the sum of the pieces ------------------------------------------------------------------------------------------------------------

template <class C>
struct Joined {
  C* out[most_together];
  float factor[most_together];
};

// Of adapter blockIdx.y: out = [out +] factor * the sum of its `pieces` parts of `size` numbers.
template <bool adds, class C>
__global__ void __launch_bounds__(per_block) join_adapters_kernel(const Joined<C> joined, const float* parts, int64_t size, int pieces) {
  C* out = joined.out[0];
  float factor = joined.factor[0];
#pragma unroll
  for (int a = 1; a < most_together; ++a)
    if (int(blockIdx.y) == a) out = joined.out[a], factor = joined.factor[a];
  for (int64_t i = int64_t(blockIdx.x) * per_block + int(threadIdx.x); i < size; i += int64_t(gridDim.x) * per_block) {
    float sum = 0;
    for (int p = 0; p < pieces; ++p) sum += parts[(int64_t(p) * gridDim.y + blockIdx.y) * size + i];
    out[i] = rounded<C>(adds ? fmaf(sum, factor, value_of(out[i])) : sum * factor);
  }
}

template <bool adds, class C>
void join(Device& device, const Joined<C>& joined, const float* parts, int64_t size, int count, int64_t pieces) {
  const int64_t blocks = std::min<int64_t>((size + per_block - 1) / per_block, int64_t(multiprocessors(device)) * 8);
  launch(device, join_adapters_kernel<adds, C>, {dim3(unsigned(blocks), unsigned(count)), dim3(per_block)}, joined, parts, size,
         int(pieces));
}

// f(some of them, Narrow): as many as one launch takes, all of them dropped or none.
template <class T, class F>
void each_launch(std::span<const AdapterProduct> all, int most, int64_t m, int64_t k, F f) {
  while (!all.empty()) {
    Narrow<T> narrow{};
    narrow.r = int(all[0].a.rows());
    const bool drops = all[0].drop.p > 0;
    while (narrow.count < most && size_t(narrow.count) < all.size() && (all[size_t(narrow.count)].drop.p > 0) == drops) {
      narrow.drop[narrow.count] = drop_mask(all[size_t(narrow.count)].drop, m, k);
      ++narrow.count;
    }
    f(all.first(size_t(narrow.count)), narrow);
    all = all.subspan(size_t(narrow.count));
  }
}

int64_t stretch_of(int64_t size, int64_t pieces, int64_t unit) { return ((size + pieces - 1) / pieces + unit - 1) / unit * unit; }
unsigned blocks_of(int64_t size, int64_t each) { return unsigned((size + each - 1) / each); }

template <class T>
void forward(Device& device, std::span<const AdapterProduct> all, Tensor x, float* parts) {
  const int64_t m = x.rows(), k = x.cols(), stretch = stretch_of(k, adapter_pieces(m, k), cols);
  each_launch<T>(all, most_together, m, k, [&](std::span<const AdapterProduct> some, Narrow<T> narrow) {
    Joined<T> joined{};
    for (size_t i = 0; i < some.size(); ++i) {
      narrow.matrix[i] = some[i].a.template as<const T>();
      joined.out[i] = some[i].t.template as<T>(), joined.factor[i] = some[i].scale * drop_factor(some[i].drop);
    }
    const Grid blocks{dim3(blocks_of(m, rows), blocks_of(k, stretch)), dim3(per_block)};
    const auto give = [&]<int tiles, int stages>() {
      Grid grid = blocks;
      grid.shared = size_t(stages) * size_t(rows + narrow.count * narrow.r) * cols * sizeof(T);
      const auto kernel = narrow.drop[0].row_keys ? adapters_kernel<tiles, stages, true, T> : adapters_kernel<tiles, stages, false, T>;
      launch(device, kernel, grid, parts, x.as<const T>(), narrow, m, k, stretch);
    };
    if (narrow.r <= 16) {
      give.template operator()<2, 4>();
    } else {
      give.template operator()<8, 3>();
    }
    join<false>(device, joined, parts, m * narrow.r, narrow.count, blocks.blocks.y);
  });
}

template <class T>
void weight_gradient(Device& device, std::span<const AdapterProduct> all, Tensor x, float* parts) {
  const int64_t m = x.rows(), k = x.cols(), stretch = stretch_of(m, adapter_backward_pieces(m, k), deep);
  each_launch<T>(all, all[0].a.rows() > 32 ? 1 : most_together, m, k, [&](std::span<const AdapterProduct> some, Narrow<T> narrow) {
    Joined<float> joined{};
    for (size_t i = 0; i < some.size(); ++i) {
      narrow.matrix[i] = some[i].t.template as<const T>();
      joined.out[i] = some[i].da.template as<float>(), joined.factor[i] = drop_factor(some[i].drop);
    }
    Grid grid{dim3(blocks_of(k, wide), blocks_of(m, stretch)), dim3(per_block)};
    grid.shared = size_t(gradient_stages) * deep * size_t(wide + (narrow.count * narrow.r / 8 | 1) * 8) * sizeof(T);
    const auto give = [&]<int tiles>() {
      const auto kernel = narrow.drop[0].row_keys ? adapters_gradient_kernel<tiles, true, T> : adapters_gradient_kernel<tiles, false, T>;
      launch(device, kernel, grid, parts, x.as<const T>(), narrow, m, k, stretch);
    };
    if (narrow.r <= 16) {
      give.template operator()<1>();
    } else if (narrow.r <= 32) {
      give.template operator()<2>();
    } else {
      give.template operator()<4>();
    }
    join<true>(device, joined, parts, narrow.r * k, narrow.count, grid.blocks.y);
  });
}

}  // namespace

DropMask drop_mask(const Drop& d, int64_t m, int64_t k) {
  if (d.p == 0) return {};
  const int64_t keys = std::max<int64_t>(1, d.row_keys.size());
  return {d.row_keys.as<const int64_t>(), d.key, uint32_t(std::ceil(double(d.p) * 0x1p32)), int(std::max<int64_t>(1, m / keys)), k};
}

float drop_factor(const Drop& d) { return float(1 / (1 - double(d.p))); }

void adapters_forward(Device& device, std::span<const AdapterProduct> all, Tensor x, float* parts) {
  if (x.dtype == Dtype::f16) return forward<F16>(device, all, x, parts);
  forward<Bf16>(device, all, x, parts);
}

void adapters_weight_gradient(Device& device, std::span<const AdapterProduct> all, Tensor x, float* parts) {
  if (x.dtype == Dtype::f16) return weight_gradient<F16>(device, all, x, parts);
  weight_gradient<Bf16>(device, all, x, parts);
}

}  // namespace tessera::CUDA_SIDE
