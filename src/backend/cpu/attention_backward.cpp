// Backward pass as in FlashAttention-2 (Dao, 2023), with keys in vector lanes: probabilities come again from lse, one square of
// block_tokens queries by block_tokens keys at a time, and each square adds to the gradients of its queries and of its keys.
// Squares of one diagonal share neither, so they run side by side; diagonals follow one another. That fixes the order of every sum.
#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_backward.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/attention-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr size_t panels_of_block = 2, block_tokens = panels_of_block * panel_width;
constexpr size_t row_block = 96;                  // rows of queries at a time
constexpr size_t most_gradient_bytes = 64 << 20;  // of gradients in f32, unless one head needs more

struct Operands {
  Tensor dq, dk, dv, dout, out, lse, q, k, v;
  Heads heads;
  float scale;
  size_t stride = padded(heads.width), depth = round_up(heads.width, 8);
  size_t blocks = (size_t(heads.keys) + block_tokens - 1) / block_tokens;
};

// The gradients of one (batch, key head) while they grow.
struct Sums {
  float* dq;     // rows
  float* dk;     // panels (D, keys), one after another
  float* dv;     // panels
  float* delta;  // sum of dout * out of each row

  static size_t size(const Operands& o) {
    const size_t tokens = o.blocks * block_tokens, rows = tokens * size_t(o.heads.group);
    return rows * o.stride + 2 * tokens * o.depth + rows;
  }
  Sums(const Operands& o, float* memory) {
    const size_t tokens = o.blocks * block_tokens, rows = tokens * size_t(o.heads.group);
    dq = memory;
    dk = dq + rows * o.stride;
    dv = dk + tokens * o.depth;
    delta = dv + tokens * o.depth;
  }
};

class Square {
 public:
  explicit Square(const Operands& operands) : o_(operands) {}

  void run(int64_t pair, const Sums& sums, size_t key_block, size_t query_block) {
    pair_ = pair;
    first_key_ = key_block * block_tokens;
    load_keys();
    const size_t group = size_t(o_.heads.group), rows = size_t(o_.heads.rows());
    const size_t end = std::min((query_block + 1) * block_tokens * group, rows);
    for (size_t row = query_block * block_tokens * group; row < end; row += row_block) {
      load_rows(sums, row, std::min(row_block, end - row));
      for (size_t p = 0; p < panels_of_block; ++p) add_panel(sums, row, p);
    }
  }

 private:
  // Keys after the last one are zeros.
  void load_keys() {
    float* value_rows = query_;  // not in use yet
    for (size_t j = 0; j < block_tokens; ++j) {
      const int64_t key = int64_t(first_key_ + j);
      const bool real = key < o_.heads.keys;
      const int64_t offset = real ? o_.heads.key_offset(pair_, key) : 0;
      load_row(keys_ + j * o_.stride, o_.k, offset, o_.heads.width, real);
      load_row(value_rows + j * o_.stride, o_.v, offset, o_.heads.width, real);
    }
    for (size_t p = 0; p < panels_of_block; ++p) {
      const size_t from = p * panel_width * o_.stride, to = p * panel_width * o_.depth;
      transpose(key_panels_ + to, panel_width, keys_ + from, o_.stride, panel_width, o_.depth);
      transpose(value_panels_ + to, panel_width, value_rows + from, o_.stride, panel_width, o_.depth);
    }
  }

  // Rows after the last one are zeros and see nothing.
  void load_rows(const Sums& sums, size_t row, size_t count) {
    rows_ = round_up(count, 8);
    for (size_t r = 0; r < rows_; ++r) {
      const bool real = r < count;
      const int64_t at = int64_t(row + r), offset = real ? o_.heads.query_offset(pair_, at) : 0;
      first_[r] = real ? o_.heads.first_key(pair_, at) : 1;
      last_[r] = real ? o_.heads.last_key(at) : 0;
      lse_[r] = real ? o_.lse.as<float>()[o_.heads.lse_offset(pair_, at)] : 0;
      delta_[r] = real ? sums.delta[at] : 0;
      load_row(query_ + r * o_.stride, o_.q, offset, o_.heads.width, real);
      load_row(dout_ + r * o_.stride, o_.dout, offset, o_.heads.width, real);
    }
  }

  bool sees(size_t r, int32_t key) const { return first_[r] < key + int32_t(panel_width) && last_[r] >= key; }
  bool sees_all(size_t r, int32_t key) const { return first_[r] <= key && last_[r] >= key + int32_t(panel_width) - 1; }

  void add_panel(const Sums& sums, size_t row, size_t p) {
    const int32_t key = int32_t(first_key_ + p * panel_width);
    size_t begin = 0, end = rows_;
    while (begin < end && !sees(begin, key)) ++begin;
    while (begin < end && !sees(end - 1, key)) --end;
    if (begin == end) return;
    begin = begin / 8 * 8;
    const size_t count = round_up(end - begin, 8), stride = o_.stride, panel = o_.depth * panel_width;
    const float *query = query_ + begin * stride, *dout = dout_ + begin * stride;

    panel_product<false, Start::zero>(p_, count, {query, stride}, key_panels_ + p * panel, o_.heads.width);
    panel_product<false, Start::zero>(ds_, count, {dout, stride}, value_panels_ + p * panel, o_.heads.width);
    for (size_t r = 0; r < count; ++r) differentiate_row(r, begin + r, key);
    const size_t at = (size_t(key) / panel_width) * panel;
    panel_product<true, Start::sum>(sums.dv + at, o_.depth, {dout, stride}, p_, count);
    panel_product<true, Start::sum>(sums.dk + at, o_.depth, {query, stride}, ds_, count);
    add_row_product(sums.dq + (row + begin) * stride, count, {ds_, panel_width}, {keys_ + p * panel_width * stride, stride}, panel_width);
  }

  // Row r of the panels: p = exp(scale * score - lse) in place of the score, ds = p * (dp - delta) * scale in place of dp.
  void differentiate_row(size_t r, size_t row, int32_t key) {
    const FloatVec scale = hn::Set(floats, o_.scale), lse = hn::Set(floats, lse_[row]), delta = hn::Set(floats, delta_[row]);
    const IntVec first = hn::Set(ints, first_[row]), last = hn::Set(ints, last_[row]);
    const bool all_seen = sees_all(row, key);
    for (size_t c = 0; c < panel_width; c += lanes) {
      float *p_at = p_ + r * panel_width + c, *ds_at = ds_ + r * panel_width + c;
      FloatVec p = exp_nonpositive(hn::MulSub(hn::Load(floats, p_at), scale, lse));
      if (!all_seen) {
        const IntVec here = hn::Iota(ints, key + int32_t(c));
        p = hn::IfThenZeroElse(hn::RebindMask(floats, hn::Or(hn::Gt(first, here), hn::Gt(here, last))), p);
      }
      hn::Store(p, floats, p_at);
      hn::Store(hn::Mul(hn::Mul(p, scale), hn::Sub(hn::Load(floats, ds_at), delta)), floats, ds_at);
    }
  }

  const Operands& o_;
  int64_t pair_ = 0;
  size_t first_key_ = 0, rows_ = 0;
  static_assert(row_block >= block_tokens);
  Scratch scratch_{(block_tokens + 2 * row_block) * o_.stride + 2 * block_tokens * o_.depth + 2 * row_block * panel_width};
  float* keys_ = scratch_.take(block_tokens * o_.stride);         // rows
  float* query_ = scratch_.take(row_block * o_.stride);           // rows
  float* dout_ = scratch_.take(row_block * o_.stride);            // rows
  float* key_panels_ = scratch_.take(block_tokens * o_.depth);    // panels (D, keys)
  float* value_panels_ = scratch_.take(block_tokens * o_.depth);  // panels
  float* p_ = scratch_.take(row_block * panel_width);             // panel (rows, keys): scores, then probabilities
  float* ds_ = scratch_.take(row_block * panel_width);            // panel: their gradient
  float lse_[row_block], delta_[row_block];
  int32_t first_[row_block], last_[row_block];
};

void start_block(const Operands& o, int64_t pair, const Sums& sums, size_t block) {
  const size_t tokens = block * block_tokens, group = size_t(o.heads.group);
  std::fill_n(sums.dq + tokens * group * o.stride, block_tokens * group * o.stride, 0.0f);
  std::fill_n(sums.dk + tokens * o.depth, block_tokens * o.depth, 0.0f);
  std::fill_n(sums.dv + tokens * o.depth, block_tokens * o.depth, 0.0f);
  const int64_t end = std::min<int64_t>(int64_t((tokens + block_tokens) * group), o.heads.rows());
  dispatch_float(o.out.dtype, [&]<class T>() {
    for (int64_t row = int64_t(tokens * group); row < end; ++row) {
      const T* out = o.out.as<T>() + o.heads.query_offset(pair, row);
      const T* dout = o.dout.as<T>() + o.heads.query_offset(pair, row);
      sums.delta[row] =
          sum_vectors(int64_t(o.heads.width), [&](auto d, int64_t i) { return hn::Mul(load(d, out + i), load(d, dout + i)); });
    }
  });
}

void store_block(const Operands& o, int64_t pair, const Sums& sums, size_t block) {
  const size_t tokens = block * block_tokens, group = size_t(o.heads.group), panel = panel_width * o.depth;
  const int64_t end = std::min<int64_t>(int64_t((tokens + block_tokens) * group), o.heads.rows());
  for (int64_t row = int64_t(tokens * group); row < end; ++row) {
    store_row(o.dq, o.heads.query_offset(pair, row), sums.dq + size_t(row) * o.stride, o.heads.width, 1);
  }
  float* rows = Scratch(panel_width * o.stride).take(panel_width * o.stride);
  for (const auto& [to, from] : {std::pair(o.dk, sums.dk), std::pair(o.dv, sums.dv)}) {
    for (size_t p = block * panels_of_block; p < (block + 1) * panels_of_block; ++p) {
      transpose(rows, o.stride, from + p * panel, panel_width, o.depth, panel_width);
      const size_t keys_end = std::min((p + 1) * panel_width, size_t(o.heads.keys));
      for (size_t key = p * panel_width; key < keys_end; ++key) {
        store_row(to, o.heads.key_offset(pair, int64_t(key)), rows + (key - p * panel_width) * o.stride, o.heads.width, 1);
      }
    }
  }
}

// As many (batch, key head) pairs at a time as most_gradient_bytes allows: they are independent, so the bits do not depend on it.
void attention_backward(int threads, const Operands& o, int64_t pairs) {
  const size_t size = round_up(Sums::size(o), 16);
  const int64_t together = std::clamp<int64_t>(int64_t(most_gradient_bytes / sizeof(float) / size), 1, std::max<int64_t>(pairs, 1));
  const auto memory = hwy::AllocateAligned<float>(size * size_t(together));
  const auto sums = [&](int64_t i) { return Sums(o, memory.get() + size * size_t(i)); };
  const int64_t blocks = int64_t(o.blocks), block = int64_t(block_tokens);
  for (int64_t first = 0; first < pairs; first += together) {
    const int64_t count = std::min(together, pairs - first);
    const auto each = [&](int64_t n, auto&& f) {  // f(pair, its sums, i) for i in [0, n)
      parallel_chunks(threads, count * n, 1, [&](int64_t c, int64_t) { f(first + c / n, sums(c / n), size_t(c % n)); });
    };
    each(blocks, [&](int64_t pair, const Sums& s, size_t b) { start_block(o, pair, s, b); });
    for (int64_t apart = 0; apart < blocks; ++apart) {
      if (o.heads.window && (apart - 1) * block + 1 >= o.heads.window) break;
      each(blocks - apart, [&](int64_t pair, const Sums& s, size_t b) { Square(o).run(pair, s, b, b + size_t(apart)); });
    }
    each(blocks, [&](int64_t pair, const Sums& s, size_t b) { store_block(o, pair, s, b); });
  }
}

void run_attention_backward(int threads, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                            Tensor starts, AttentionShape shape) {
  const Operands operands = {dq, dk, dv, dout, out, lse, q, k, v, Heads(q, k, starts, shape), shape.scale};
  attention_backward(worth_threads(threads, q.size() * k.shape.dim[1]), operands, q.shape.dim[0] * operands.heads.key_heads);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(run_attention_backward);
}  // namespace

void CpuBackend::attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                                    Tensor starts, AttentionShape shape) {
  HWY_DYNAMIC_DISPATCH(run_attention_backward)(threads_, dq, dk, dv, dout, out, lse, q, k, v, starts, shape);
}

}  // namespace tessera
#endif
