// Products by oneDNN, for processors whose matrix tiles it knows. A product is cut into tiles of the output by its sizes alone, and each
// tile is computed by one thread: the bits do not depend on the number of threads.
#include <dnnl.hpp>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdlib>
#include <map>
#include <tuple>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"

namespace tessera {
namespace {
using dnnl::memory;

// One operand: a matrix at `data` whose element (row, col) is at row * row_stride + col * col_stride.
struct Operand {
  std::byte* data;
  Dtype dtype;
  int64_t row_stride, col_stride;
  std::byte* at(int64_t row, int64_t col) const { return data + size_t(row * row_stride + col * col_stride) * size_of(dtype); }
};

struct Scaling {
  float alpha;
  bool accumulate;
};

struct Primitive {
  dnnl::matmul matmul;
  memory::desc a, b, c, scratchpad;
};

// oneDNN sizes its work by the number of OpenMP threads of the caller, both when it makes a primitive and when it runs one.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

// Memory of this thread that grows to the largest request; `slot` tells apart pieces in use at once.
std::byte* thread_scratch(int slot, size_t bytes) {
  thread_local Buffer pieces[6];
  Buffer& piece = pieces[slot];
  if (piece.bytes() < bytes) {
    const size_t size = (bytes + 4095) / 4096 * 4096;
    piece = Buffer();
    piece = Buffer(std::aligned_alloc(4096, size), size, [](void* data, size_t) { std::free(data); });
  }
  return piece.data();
}

memory::data_type type_of(Dtype dtype) { return dtype == Dtype::bf16 ? memory::data_type::bf16 : memory::data_type::f32; }

Primitive make_product(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, const Operand& c, Scaling scaling) {
  const auto describe = [](int64_t rows, int64_t cols, const Operand& o) {
    return memory::desc({rows, cols}, type_of(o.dtype), memory::dims{o.row_stride, o.col_stride});
  };
  const memory::desc da = describe(m, k, a), db = describe(k, n, b), dc = describe(m, n, c);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (scaling.alpha != 1) attributes.set_output_scales(0, {scaling.alpha});
  if (scaling.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1);
    attributes.set_post_ops(sum);
  }
  const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(da, db, dc), attributes, engine());
  return {dnnl::matmul(chosen), da, db, dc, chosen.scratchpad_desc()};
}

using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, Dtype, Dtype, uint32_t, bool>;

// The primitives this thread has made.
std::map<Key, Primitive>& products() {
  thread_local std::map<Key, Primitive> made;
  return made;
}

Primitive find_product(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, const Operand& c, Scaling scaling) {
  constexpr size_t most = 2048;  // shapes change with the lengths of sequences
  const Key key(m, n, k, a.row_stride, a.col_stride, b.row_stride, b.col_stride, c.row_stride, a.dtype, c.dtype,
                std::bit_cast<uint32_t>(scaling.alpha), scaling.accumulate);
  if (const auto found = products().find(key); found != products().end()) return found->second;
  if (products().size() >= most) products().clear();
  return products().emplace(key, make_product(m, n, k, a, b, c, scaling)).first->second;
}

void run(const Primitive& product, void* a, void* b, void* c) {
  thread_local dnnl::stream stream(engine());
  product.matmul.execute(stream,
                         {{DNNL_ARG_SRC, memory(product.a, engine(), a)},
                          {DNNL_ARG_WEIGHTS, memory(product.b, engine(), b)},
                          {DNNL_ARG_DST, memory(product.c, engine(), c)},
                          {DNNL_ARG_SCRATCHPAD, memory(product.scratchpad, engine(), thread_scratch(0, product.scratchpad.get_size()))}});
}

// oneDNN 2.6 has bf16 products from AVX-512 on.
bool has_bf16() {
  static const bool has = [] {
    const auto isa = dnnl::get_effective_cpu_isa();
    return isa != dnnl::cpu_isa::sse41 && isa != dnnl::cpu_isa::avx && isa != dnnl::cpu_isa::avx2 && isa != dnnl::cpu_isa::avx2_vnni;
  }();
  return has;
}

// A bf16 block (rows, cols) as f32 in scratch of this thread, row by row.
Operand widened(int slot, const Operand& x, int64_t row, int64_t col, int64_t rows, int64_t cols) {
  float* out = reinterpret_cast<float*>(thread_scratch(slot, size_t(rows * cols) * sizeof(float)));
  const Bf16* from = reinterpret_cast<const Bf16*>(x.at(row, col));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) out[r * cols + c] = from[r * x.row_stride + c * x.col_stride];
  return {reinterpret_cast<std::byte*>(out), Dtype::f32, cols, 1};
}

void narrow(const Operand& from, const Operand& to, int64_t row, int64_t col, int64_t rows, int64_t cols) {
  const float* x = reinterpret_cast<const float*>(from.data);
  Bf16* out = reinterpret_cast<Bf16*>(to.at(row, col));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) out[r * to.row_stride + c] = x[r * from.row_stride + c];
}

// Sizes of the tiles of an (m, n) output summed over k: enough work to hide the start of a primitive and to use what was packed of b,
// few enough elements that a tile of `a` stays in the second-level cache, enough tiles for many threads.
struct Tiles {
  int64_t rows, cols;
};

int64_t even_part(int64_t n, int64_t most, int64_t multiple) {
  const int64_t parts = (n + most - 1) / most, part = (n + parts - 1) / parts;
  return std::min(n, (part + multiple - 1) / multiple * multiple);
}

Tiles choose_tiles(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t rows = 256, cols = 192, least_products = int64_t(4) << 20, least_weights = int64_t(1) << 18;
  const int64_t tile_rows = even_part(m, rows, 16);
  int64_t most_cols = cols;
  while (most_cols < n && tile_rows * most_cols * k < least_products && most_cols * k < least_weights) most_cols *= 2;
  return {tile_rows, even_part(n, most_cols, 64)};
}

// One tile by way of f32.
void run_widened(Tiles tile, int64_t k, const Operand& a, const Operand& b, const Operand& c, int64_t row, int64_t col, Scaling scaling) {
  const Operand wa = widened(1, a, row, 0, tile.rows, k), wb = widened(2, b, 0, col, k, tile.cols);
  const bool direct = c.dtype == Dtype::f32;
  const Operand wc = direct ? Operand{c.at(row, col), c.dtype, c.row_stride, 1} : widened(3, c, row, col, tile.rows, tile.cols);
  run(find_product(tile.rows, tile.cols, k, wa, wb, wc, scaling), wa.data, wb.data, wc.data);
  if (!direct) narrow(wc, c, row, col, tile.rows, tile.cols);
}

void multiply(int threads, Tensor c, Tensor a, bool transpose_a, Tensor b, bool transpose_b, float alpha, bool accumulate) {
  const int64_t m = c.rows(), n = c.cols(), k = transpose_a ? a.rows() : a.cols();
  const auto operand = [](const Tensor& t, bool transposed) {
    return Operand{t.as<std::byte>(), t.dtype, transposed ? 1 : t.cols(), transposed ? t.cols() : 1};
  };
  const Operand oa = operand(a, transpose_a), ob = operand(b, transpose_b), oc = operand(c, false);
  const bool widen = a.dtype == Dtype::bf16 && !has_bf16();
  const Tiles tile = choose_tiles(m, n, k);
  const int64_t down = (m + tile.rows - 1) / tile.rows, across = (n + tile.cols - 1) / tile.cols;
  const auto size = [&](int64_t i, int64_t j) {
    return Tiles{std::min(tile.rows, m - i * tile.rows), std::min(tile.cols, n - j * tile.cols)};
  };
  const Scaling scaling{alpha, accumulate};
  const OneThread one_thread;

  Primitive made[2][2];  // for a tile of the inside, the last column, the last row, the corner
  for (int last_row = 0; last_row < 2 && !widen; ++last_row)
    for (int last_col = 0; last_col < 2; ++last_col) {
      const Tiles t = size(last_row * (down - 1), last_col * (across - 1));
      made[last_row][last_col] = find_product(t.rows, t.cols, k, oa, ob, oc, scaling);
    }

  parallel_chunks(worth_threads(threads, m * n * k), down * across, 1, [&](int64_t begin, int64_t) {
    const int64_t i = begin % down, j = begin / down, row = i * tile.rows, col = j * tile.cols;
    if (widen) return run_widened(size(i, j), k, oa, ob, oc, row, col, scaling);
    run(made[i == down - 1][j == across - 1], oa.at(row, 0), ob.at(0, col), oc.at(row, col));
  });
}

// The values of a matrix of codes, in memory the calling thread keeps.
Tensor decoded(CpuBackend& backend, const Codes4& codes, Dtype dtype) {
  const int64_t blocks = codes.absmax.size();
  Tensor absmax = codes.absmax;
  if (absmax.dtype == Dtype::u8) {
    absmax = Tensor{thread_scratch(4, size_t(blocks) * sizeof(float)), Dtype::f32, {blocks}, &backend};
    backend.nested_decode(absmax, codes.absmax, codes.nested_absmax, codes.nested_offset, codes.map);
  }
  const Shape shape{codes.rows, codes.cols};
  const Tensor out{thread_scratch(5, size_t(shape.size()) * size_of(dtype)), dtype, shape, &backend};
  backend.codebook4_decode(out, codes.codes, absmax, codes.table, codes.block);
  return out;
}

}  // namespace

ProductEngine best_product_engine() {
  static const bool tiles = dnnl::get_effective_cpu_isa() == dnnl::cpu_isa::avx512_core_amx;
  return tiles ? ProductEngine::onednn : ProductEngine::panels;
}

// c is rounded after each term: so what is added comes first, then the narrow terms, an adapter's; the last rounding is of all.
void CpuBackend::gemm_onednn(const Product& p) {
  if (p.c.size() == 0) return;
  assert(p.addend.empty() || p.addend.data != p.c.data || !p.accumulate);
  const auto depth = [&](const Term* t) { return p.transpose_a ? t->a.rows() : t->a.cols(); };
  const Term* terms[Product::most_terms];
  int count = 0;
  for (int i = 0; i < p.terms; ++i)
    if (p.term[i].a.size() > 0) terms[count++] = &p.term[i];
  std::stable_sort(terms, terms + count, [&](const Term* x, const Term* y) { return depth(x) < depth(y); });

  bool accumulate = p.accumulate || (!p.addend.empty() && p.addend.data == p.c.data);
  if (!p.addend.empty() && p.addend.data != p.c.data) {
    if (!p.accumulate) {
      convert(p.c, p.addend);
    } else if (p.addend.dtype == p.c.dtype) {
      add(p.c, p.c, p.addend);
    } else {
      CpuBackend::accumulate(p.c, p.addend);
    }
    accumulate = true;
  }
  for (int i = 0; i < count; ++i) {
    const Tensor a = terms[i]->a;
    const Tensor b = terms[i]->b.is_codes() ? decoded(*this, terms[i]->b.codes, a.dtype) : terms[i]->b.dense;
    multiply(threads_, p.c, a, p.transpose_a, b, p.transpose_b, p.alpha, accumulate);
    accumulate = true;
  }
  if (!accumulate) fill_zero(p.c);
  if (p.bias.empty()) return;
  Tensor bias = p.bias;
  if (bias.dtype != p.c.dtype) {
    bias = {thread_scratch(4, size_t(bias.size()) * size_of(p.c.dtype)), p.c.dtype, bias.shape, this};
    convert(bias, p.bias);
  }
  add_bias(p.c, bias);
}

}  // namespace tessera
