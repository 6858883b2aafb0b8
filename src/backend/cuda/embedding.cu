// The gradient of a table sums the tokens of each id in their order. A stable radix sort of the tokens by id brings those together: 8 bits
// of the id at a time, three launches each (17 bits for 128k ids: 9 launches over 4 bytes per token); then a block for each id that occurs
// walks its tokens.
#include "backend/cuda/cuda.h"
#include "backend/cuda/packs.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {
namespace {

// Row i of x to row index[i] of out, or from row index[i] of x to row i of out; a row is `units` of U.
template <bool scatter, class U>
__global__ void __launch_bounds__(per_block) copy_rows_kernel(U* out, const U* x, const int32_t* index, int64_t rows, int units) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const int64_t other = index[row];
  U* const to = out + (scatter ? other : row) * units;
  const U* const from = x + (scatter ? row : other) * units;
  for (int i = int(threadIdx.x); i < units; i += int(blockDim.x)) to[i] = from[i];
}

template <bool scatter>
void copy_rows(Device& device, Tensor out, Tensor x, Tensor index) {
  const size_t bytes = size_t(x.cols()) * size_of(x.dtype);
  const auto by = [&]<class U>() {
    const int64_t units = int64_t(bytes / sizeof(U));
    launch(device, copy_rows_kernel<scatter, U>, rows_grid(index.size(), units), out.as<U>(), x.as<const U>(), index.as<const int32_t>(),
           index.size(), int(units));
  };
  if (bytes % 16 == 0 && aligned({out.data, x.data})) return by.template operator()<Pack<uint32_t, 4>>();
  if (size_of(x.dtype) % 4 == 0) return by.template operator()<uint32_t>();
  by.template operator()<uint16_t>();
}

constexpr int digits = int(sort_digits), chunk = int(sort_chunk);

// One digit of a sort of tokens by id. Tokens stand in `order`, or as they come when that is null; a warp has a chunk of them.
struct Digit {
  const int32_t* ids;
  const int32_t* order;
  int shift;
  int64_t count;

  __device__ int token(int64_t i) const { return order ? order[i] : int(i); }
  __device__ int of(int token) const { return ids[token] >> shift & (digits - 1); }
};

// The lanes whose digit is the same; lanes that are not valid have none.
__device__ __forceinline__ unsigned same_digit(int digit, bool valid) {
  unsigned lanes = __ballot_sync(whole_warp, valid);
  for (int bit = 1; bit < digits; bit *= 2) {
    const unsigned set = __ballot_sync(whole_warp, (digit & bit) != 0);
    lanes &= digit & bit ? set : ~set;
  }
  return valid ? lanes : 0;
}

// Walks a chunk, 32 tokens at a time: calls f(token, digit, how many with this digit came before in the chunk or were there at its start).
// `next` (digits) in shared memory counts on.
template <class F>
__device__ __forceinline__ void walk_chunk(const Digit& sort, int* next, F&& f) {
  const int lane = int(threadIdx.x);
  const int64_t begin = int64_t(blockIdx.x) * chunk;
  for (int step = 0; step < chunk; step += warp_size) {
    const int64_t i = begin + step + lane;
    const bool valid = i < sort.count;
    const int token = valid ? sort.token(i) : 0, digit = valid ? sort.of(token) : 0;
    const unsigned same = same_digit(digit, valid);
    const int before = __popc(same & ((1u << lane) - 1));
    const int at = valid ? next[digit] + before : 0;
    __syncwarp();
    if (valid && before == 0) next[digit] += __popc(same);
    __syncwarp();
    if (valid) f(token, digit, at);
  }
}

// counts (digits, chunks)
__global__ void __launch_bounds__(warp_size) count_digits_kernel(int32_t* counts, Digit sort, int chunks) {
  SharedMemory shared;
  int* const next = shared.take<int>(digits);
  for (int d = int(threadIdx.x); d < digits; d += warp_size) next[d] = 0;
  __syncwarp();
  walk_chunk(sort, next, [](int, int, int) {});
  for (int d = int(threadIdx.x); d < digits; d += warp_size) counts[d * chunks + int(blockIdx.x)] = next[d];
}

// counts become where each digit of each chunk begins. One block, a thread for each digit.
__global__ void __launch_bounds__(digits) place_digits_kernel(int32_t* counts, int chunks) {
  SharedMemory shared;
  int* const totals = shared.take<int>(digits);
  const int d = int(threadIdx.x);
  int32_t* const mine = counts + d * chunks;
  int total = 0;
  for (int c = 0; c < chunks; ++c) total += mine[c];
  totals[d] = total;
  __syncthreads();
  int at = 0;
  for (int before = 0; before < d; ++before) at += totals[before];
  for (int c = 0; c < chunks; ++c) {
    const int count = mine[c];
    mine[c] = at;
    at += count;
  }
}

__global__ void __launch_bounds__(warp_size) place_tokens_kernel(int32_t* out, const int32_t* places, Digit sort, int chunks) {
  SharedMemory shared;
  int* const next = shared.take<int>(digits);
  for (int d = int(threadIdx.x); d < digits; d += warp_size) next[d] = places[d * chunks + int(blockIdx.x)];
  __syncwarp();
  walk_chunk(sort, next, [&](int token, int, int at) { out[at] = token; });
}

// The tokens in the order of their ids, equal ids in the order of tokens; in `room`, embedding_scratch(tokens) bytes.
const int32_t* sorted_tokens(Device& device, const int32_t* ids, int64_t tokens, int64_t table_rows, std::byte* room) {
  const int chunks = int((tokens + chunk - 1) / chunk);
  auto* const orders = reinterpret_cast<int32_t*>(room);
  int32_t* const counts = orders + 2 * tokens;
  const int32_t* from = nullptr;
  for (int shift = 0; shift == 0 || (table_rows - 1) >> shift > 0; shift += 8) {
    int32_t* const to = from == orders ? orders + tokens : orders;
    const Digit sort{ids, from, shift, tokens};
    const Grid by_chunk{dim3(unsigned(chunks)), dim3(warp_size), digits * sizeof(int)};
    launch(device, count_digits_kernel, by_chunk, counts, sort, chunks);
    launch(device, place_digits_kernel, {dim3(1), dim3(digits), digits * sizeof(int)}, counts, chunks);
    launch(device, place_tokens_kernel, by_chunk, to, counts, sort, chunks);
    from = to;
  }
  return from;
}

// Where the tokens of an id end that begin at `first`: steps that double, then halve.
__device__ __forceinline__ int64_t end_of_id(const int32_t* ids, const int32_t* order, int64_t first, int64_t tokens, int id) {
  int64_t inside = first, step = 1;
  while (inside + step < tokens && ids[order[inside + step]] == id) {
    inside += step;
    step *= 2;
  }
  for (; step > 0; step /= 2)
    if (inside + step < tokens && ids[order[inside + step]] == id) inside += step;
  return inside + 1;
}

// A block has one strip of columns of the id at place blockIdx.x of the sorted tokens, if that is the first of its id.
template <int N, class T>
__global__ void __launch_bounds__(per_block)
    sum_tokens_kernel(float* dtable, const T* dout, const int32_t* ids, const int32_t* order, int64_t tokens, int cols) {
  const int64_t first = blockIdx.x;
  const int id = ids[order[first]], col = int(blockIdx.y * blockDim.x + threadIdx.x) * N;
  if ((first > 0 && ids[order[first - 1]] == id) || col >= cols) return;
  const int64_t end = end_of_id(ids, order, first, tokens, id);
  float sum[N];
  float* const to = dtable + int64_t(id) * cols + col;
  load(sum, to);
#pragma unroll 4
  for (int64_t i = first; i < end; ++i) {
    float v[N];
    load(v, dout + int64_t(order[i]) * cols + col);
    for (int k = 0; k < N; ++k) sum[k] += v[k];
  }
  store(to, sum);
}

}  // namespace

void CudaBackend::embedding(Tensor out, Tensor table, Tensor ids) { copy_rows<false>(*device_, out, table, ids); }

void CudaBackend::embedding_backward(Tensor dtable, Tensor dout, Tensor ids) {
  const int64_t tokens = ids.size(), cols = dout.cols();
  const auto* const id = ids.as<const int32_t>();
  const int32_t* const order = sorted_tokens(*device_, id, tokens, dtable.rows(), scratch(embedding_scratch(tokens)));
  dispatch_float(dout.dtype, [&]<class T>() {
    with_packs<pack_of<T>>(aligned({dtable.data, dout.data}) && cols % pack_of<T> == 0, [&]<int N>() {
      const unsigned threads = unsigned(std::min<int64_t>(128, (cols / N + warp_size - 1) / warp_size * warp_size));
      const auto strips = unsigned((cols / N + threads - 1) / threads);
      launch(*device_, sum_tokens_kernel<N, T>, {dim3(unsigned(tokens), strips), dim3(threads)}, dtable.as<float>(), dout.as<const T>(), id,
             order, tokens, int(cols));
    });
  });
}

void CudaBackend::gather_rows(Tensor out, Tensor x, Tensor index) { copy_rows<false>(*device_, out, x, index); }

void CudaBackend::scatter_rows(Tensor out, Tensor x, Tensor index) {
  fill_zero(out);
  copy_rows<true>(*device_, out, x, index);
}

}  // namespace tessera::CUDA_SIDE
