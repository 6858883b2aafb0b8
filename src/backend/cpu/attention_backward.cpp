// Backward pass as in FlashAttention-2 (Dao, 2023), with keys in vector lanes: probabilities come again from lse, one square of
// block_tokens queries by block_tokens keys at a time, and each square adds to the gradients of its queries and of its keys.
// Squares of one diagonal share neither, so they run side by side; diagonals follow one another. That fixes the order of every sum.
#include <limits>

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
constexpr size_t block_tokens = 96, panels_of_block = block_tokens / panel_width;
constexpr size_t row_block = 96;                  // rows of queries at a time
constexpr size_t most_gradient_bytes = 64 << 20;  // of gradients in f32, unless one head needs more

struct Operands {
  Tensor dq, dk, dv, dout, out, lse, q, k, v;
  Heads heads;
  float scale;
  size_t stride = padded(heads.width);
  size_t blocks = (size_t(heads.keys) + block_tokens - 1) / block_tokens;
};

// The gradients of one key head and its queries while they grow, in rows; dq and dk still lack the factor scale.
struct Sums {
  float *dq, *dk, *dv;
  float* delta;  // sum of dout * out of each row

  static size_t size(const Operands& o) {
    const size_t tokens = o.blocks * block_tokens, rows = tokens * size_t(o.heads.group);
    return (rows + 2 * tokens) * o.stride + rows;
  }
  Sums(const Operands& o, float* memory) {
    const size_t tokens = o.blocks * block_tokens, rows = tokens * size_t(o.heads.group);
    dq = memory;
    dk = dq + rows * o.stride;
    dv = dk + tokens * o.stride;
    delta = dv + tokens * o.stride;
  }
};

template <Lane lane>
class Square {
 public:
  explicit Square(const Operands& operands) : o_(operands) {}

  void run(KeyHead of, const Sums& sums, size_t key_block, size_t query_block) {
    of_ = of;
    first_key_ = key_block * block_tokens;
    keys_loaded_ = false;
    const size_t group = size_t(o_.heads.group), end = std::min((query_block + 1) * block_tokens * group, size_t(o_.heads.rows()));
    for (size_t row = query_block * block_tokens * group; row < end; row += row_block) add_rows(sums, row, std::min(row_block, end - row));
  }

 private:
  struct Span {
    size_t begin, end;
  };

  // Nothing is read of rows and keys that do not see each other.
  void add_rows(const Sums& sums, size_t row, size_t count) {
    look(row, count);
    size_t first = 0, end = panels_of_block;
    while (first < end && is_empty(seen_[first])) ++first;
    while (first < end && is_empty(seen_[end - 1])) --end;
    if (first == end) return;
    if (!keys_loaded_) load_keys();
    load_rows(sums, row, count);
    Span rows = seen_[first];
    for (size_t p = first; p < end; ++p) rows = {std::min(rows.begin, seen_[p].begin), std::max(rows.end, seen_[p].end)};
    for (size_t p = first; p < end; ++p) add_panel(sums, p, rows);
    const size_t depth = (end - first) * panel_lanes, n = rows.end - rows.begin;
    const Block keys = {key_stack_ + first * panel_lanes * o_.stride, o_.stride};
    const Block ds = {ds_rows_ + rows.begin * ds_lanes + first * panel_lanes, ds_lanes};
    row_product<lane, false, Start::sum>(sums.dq + (row + rows.begin) * o_.stride, n, ds, keys, depth);
  }

  static bool is_empty(Span s) { return s.begin >= s.end; }

  // What the rows see, and which of them see each panel, to multiples of 8. Rows after the last one see nothing.
  void look(size_t row, size_t count) {
    rows_ = round_up(count, 8);
    o_.heads.each_row(of_, int64_t(row), int64_t(count), [&](size_t r, QueryRow at) {
      first_[r] = o_.heads.first_key(at);
      last_[r] = o_.heads.last_key(at);
    });
    std::fill(first_ + count, first_ + rows_, std::numeric_limits<int32_t>::max());
    std::fill(last_ + count, last_ + rows_, -1);
    for (size_t p = 0; p < panels_of_block; ++p) {
      const int32_t key = int32_t(first_key_ + p * panel_width);
      size_t begin = 0, end = count;
      while (begin < end && !sees(begin, key)) ++begin;
      while (begin < end && !sees(end - 1, key)) --end;
      seen_[p] = {begin / 8 * 8, begin < end ? round_up(end, 8) : 0};
    }
  }

  bool sees(size_t r, int32_t key) const { return first_[r] < key + int32_t(panel_width) && last_[r] >= key; }
  bool sees_all(size_t r, int32_t key) const { return first_[r] <= key && last_[r] >= key + int32_t(panel_width) - 1; }

  // Keys after the last one are zeros.
  void load_keys() {
    float *key_rows = query_, *value_rows = dout_;  // not in use yet
    for (size_t j = 0; j < block_tokens; ++j) {
      const int64_t key = int64_t(first_key_ + j);
      const bool real = key < o_.heads.keys;
      const int64_t offset = real ? o_.heads.key_offset(of_, key) : 0;
      load_row<lane>(key_rows + j * lead_, o_.k, offset, o_.heads.width, real);
      load_row<lane>(value_rows + j * lead_, o_.v, offset, o_.heads.width, real);
    }
    for (size_t p = 0; p < panels_of_block; ++p) {
      const size_t from = p * panel_width * lead_, to = p * panel_width * lead_;
      transpose(key_panels_ + to, panel_width, key_rows + from, lead_, panel_width, round_up(depth_, 4));
      transpose(value_panels_ + to, panel_width, value_rows + from, lead_, panel_width, round_up(depth_, 4));
    }
    if (lane == Lane::f32)
      std::copy_n(key_rows, block_tokens * lead_, key_stack_);
    else
      stacked<lane>(key_stack_, key_rows, block_tokens, o_.heads.width);
    keys_loaded_ = true;
  }

  // Rows after the last one are zeros.
  void load_rows(const Sums& sums, size_t row, size_t count) {
    o_.heads.each_row(of_, int64_t(row), int64_t(count), [&](size_t r, QueryRow at) {
      lse_[r] = o_.lse.as<float>()[o_.heads.lse_offset(at)] * log2_e;
      delta_[r] = sums.delta[row + r];
      load_row<lane>(query_ + r * lead_, o_.q, o_.heads.query_offset(at), o_.heads.width);
      load_row<lane>(dout_ + r * lead_, o_.dout, o_.heads.query_offset(at), o_.heads.width);
    });
    const size_t rest = rows_ - count;
    std::fill_n(lse_ + count, rest, 0.0f);
    std::fill_n(delta_ + count, rest, 0.0f);
    std::fill_n(query_ + count * lead_, rest * lead_, 0.0f);
    std::fill_n(dout_ + count * lead_, rest * lead_, 0.0f);
    query_stack_ = stacked<lane>(query_room_, query_, rows_, o_.heads.width);
    dout_stack_ = stacked<lane>(dout_room_, dout_, rows_, o_.heads.width);
  }

  // Adds panel p to the gradients of its keys and leaves ds of all `rows` in ds_rows.
  void add_panel(const Sums& sums, size_t p, Span rows) {
    const size_t begin = seen_[p].begin, count = seen_[p].end - begin, key = first_key_ + p * panel_width;
    panel_product<lane>(p_, count, {query_ + begin * lead_, lead_}, key_panels_ + p * panel_width * lead_, depth_);
    panel_product<lane>(ds_, count, {dout_ + begin * lead_, lead_}, value_panels_ + p * panel_width * lead_, depth_);
    for (size_t r = rows.begin; r < begin; ++r) std::fill_n(ds_row(r, p), panel_lanes, 0.0f);
    for (size_t r = 0; r < count; r += 2) differentiate_two(r, begin + r, p);
    for (size_t r = begin + count; r < rows.end; ++r) std::fill_n(ds_row(r, p), panel_lanes, 0.0f);
    const size_t stack = begin / per_lane<lane> * o_.stride, depth = count / per_lane<lane>;
    row_product<lane, true, Start::sum>(sums.dv + key * o_.stride, panel_width, {p_, panel_width}, {dout_stack_ + stack, o_.stride}, depth);
    row_product<lane, true, Start::sum>(sums.dk + key * o_.stride, panel_width, {ds_, panel_width}, {query_stack_ + stack, o_.stride},
                                        depth);
  }

  float* ds_row(size_t row, size_t p) { return ds_rows_ + row * ds_lanes + p * panel_lanes; }

  // Rows r and r + 1 of the panels: p = 2^(scale * score - lse) in place of the score, ds = p * (dp - delta) in place of dp.
  void differentiate_two(size_t r, size_t row, size_t panel) {
    const int32_t key = int32_t(first_key_ + panel * panel_width);
    const bool all_seen = sees_all(row, key) && sees_all(row + 1, key);
    for (size_t c = 0; c < panel_width; c += lanes) {
      FloatVec p[2], ds[2];
#pragma GCC unroll 2
      for (size_t i = 0; i < 2; ++i) {
        const size_t at = (r + i) * panel_width + c;
        const FloatVec score = hn::Load(floats, p_ + at), dp = hn::Load(floats, ds_ + at);
        p[i] = exp2(hn::MulSub(score, hn::Set(floats, o_.scale * log2_e), hn::Set(floats, lse_[row + i])));
        if (!all_seen) {
          const IntVec here = hn::Iota(ints, key + int32_t(c));
          const auto before = hn::Gt(hn::Set(ints, first_[row + i]), here), after = hn::Gt(here, hn::Set(ints, last_[row + i]));
          p[i] = hn::IfThenZeroElse(hn::RebindMask(floats, hn::Or(before, after)), p[i]);
        }
        ds[i] = hn::Mul(p[i], hn::Sub(dp, hn::Set(floats, delta_[row + i])));
      }
      store_two<lane>(p_ + c, r / 2, p[0], p[1]);
      store_two<lane>(ds_ + c, r / 2, ds[0], ds[1]);
      for (size_t i = 0; i < 2; ++i) store_in_row<lane>(ds_row(row + i, panel), c, ds[i]);
    }
  }

  static constexpr size_t panel_lanes = panel_width / per_lane<lane>, ds_lanes = panels_of_block * panel_lanes;
  const Operands& o_;
  KeyHead of_ = {};
  size_t first_key_ = 0, rows_ = 0;
  bool keys_loaded_ = false;
  size_t depth_ = depth_lanes<lane>(o_.heads.width), lead_ = row_lanes<lane>(o_.heads.width);
  static_assert(row_block >= block_tokens);
  Scratch scratch_{(2 * block_tokens + 2 * row_block) * lead_ + (block_tokens + 2 * row_block) * o_.stride +
                   row_block * (2 * panel_width + ds_lanes)};
  float* query_ = scratch_.take(row_block * lead_);             // rows
  float* dout_ = scratch_.take(row_block * lead_);              // rows
  float* query_room_ = scratch_.take(row_block * o_.stride);    // for query_stack_
  float* dout_room_ = scratch_.take(row_block * o_.stride);     // for dout_stack_
  float* key_stack_ = scratch_.take(block_tokens * o_.stride);  // stacked
  float* key_panels_ = scratch_.take(block_tokens * lead_);     // panels (D, keys)
  float* value_panels_ = scratch_.take(block_tokens * lead_);   // panels
  float* p_ = scratch_.take(row_block * panel_width);           // panel (rows, keys): scores, then probabilities
  float* ds_ = scratch_.take(row_block * panel_width);          // panel: their gradient
  float* ds_rows_ = scratch_.take(row_block * ds_lanes);        // rows of ds
  const float *query_stack_ = nullptr, *dout_stack_ = nullptr;  // stacked
  Span seen_[panels_of_block] = {};
  float lse_[row_block], delta_[row_block];
  int32_t first_[row_block], last_[row_block];
};

void start_block(const Operands& o, KeyHead of, const Sums& sums, size_t block) {
  const size_t tokens = block * block_tokens, group = size_t(o.heads.group);
  std::fill_n(sums.dq + tokens * group * o.stride, block_tokens * group * o.stride, 0.0f);
  std::fill_n(sums.dk + tokens * o.stride, block_tokens * o.stride, 0.0f);
  std::fill_n(sums.dv + tokens * o.stride, block_tokens * o.stride, 0.0f);
  const int64_t begin = int64_t(tokens * group), end = std::min<int64_t>(int64_t((tokens + block_tokens) * group), o.heads.rows());
  dispatch_float(o.out.dtype, [&]<class T>() {
    o.heads.each_row(of, begin, end - begin, [&](size_t r, QueryRow row) {
      const T *out = o.out.as<T>() + o.heads.query_offset(row), *dout = o.dout.as<T>() + o.heads.query_offset(row);
      sums.delta[size_t(begin) + r] =
          sum_vectors(int64_t(o.heads.width), [&](auto d, int64_t i) { return hn::Mul(load(d, out + i), load(d, dout + i)); });
    });
  });
}

void store_block(const Operands& o, KeyHead of, const Sums& sums, size_t block) {
  const size_t tokens = block * block_tokens, group = size_t(o.heads.group), begin = tokens * group;
  const size_t end = std::min((tokens + block_tokens) * group, size_t(o.heads.rows()));
  o.heads.each_row(of, int64_t(begin), int64_t(end - begin), [&](size_t r, QueryRow row) {
    store_row(o.dq, o.heads.query_offset(row), sums.dq + (begin + r) * o.stride, o.heads.width, o.scale);
  });
  for (size_t key = tokens; key < std::min(tokens + block_tokens, size_t(o.heads.keys)); ++key) {
    const int64_t offset = o.heads.key_offset(of, int64_t(key));
    store_row(o.dk, offset, sums.dk + key * o.stride, o.heads.width, o.scale);
    store_row(o.dv, offset, sums.dv + key * o.stride, o.heads.width, 1);
  }
}

// As many key heads at a time as most_gradient_bytes allows: they are independent, so the bits do not depend on it.
template <Lane lane>
void run_squares(int threads, const Operands& o, int64_t key_heads) {
  const size_t size = round_up(Sums::size(o), 16);
  const int64_t together = std::clamp<int64_t>(int64_t(most_gradient_bytes / sizeof(float) / size), 1, std::max<int64_t>(key_heads, 1));
  const auto memory = hwy::AllocateAligned<float>(size * size_t(together));
  const auto sums = [&](int64_t i) { return Sums(o, memory.get() + size * size_t(i)); };
  const int64_t blocks = int64_t(o.blocks), block = int64_t(block_tokens);
  for (int64_t first = 0; first < key_heads; first += together) {
    const int64_t count = std::min(together, key_heads - first);
    const auto each = [&](int64_t n, auto&& f) {  // f(key head, its sums, i) for i in [0, n)
      parallel_chunks(threads, count * n, 1, [&](int64_t c, int64_t) { f(o.heads.key_head(first + c / n), sums(c / n), size_t(c % n)); });
    };
    each(blocks, [&](KeyHead of, const Sums& s, size_t b) { start_block(o, of, s, b); });
    for (int64_t apart = 0; apart < blocks; ++apart) {
      if (o.heads.window && (apart - 1) * block + 1 >= o.heads.window) break;
      each(blocks - apart, [&](KeyHead of, const Sums& s, size_t b) { Square<lane>(o).run(of, s, b, b + size_t(apart)); });
    }
    each(blocks, [&](KeyHead of, const Sums& s, size_t b) { store_block(o, of, s, b); });
  }
}

void run_attention_backward(int threads, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                            Tensor starts, AttentionShape shape) {
  const Operands operands = {dq, dk, dv, dout, out, lse, q, k, v, Heads(q, k, starts, shape), shape.scale};
  threads = worth_threads(threads, q.size() * k.shape.dim[1]);
  dispatch_lane(q.dtype, [&]<Lane lane>() { run_squares<lane>(threads, operands, q.shape.dim[0] * operands.heads.key_heads); });
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
