// Backward pass as in FlashAttention-2 (Dao, 2023), with keys in vector lanes: probabilities come again from lse. A strip is a run of query
// rows of one key head: it stays in cache with its gradient and walks over the blocks of keys, adding to the gradients of these keys.
// Strips take turns at a block of keys, last rows first: that fixes the order of every sum, however long the strips are and wherever they
// run.
#include <atomic>
#include <limits>
#include <thread>
#include <vector>

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
constexpr size_t row_block = 96, key_block = 96, panels_of_block = key_block / panel_width;
constexpr size_t most_row_blocks = 4, most_strip_bytes = 400 << 10;  // of a strip: it leaves room in a cache of 1 MB
constexpr size_t most_gradient_bytes = 64 << 20;                     // of gradients in f32, unless one head needs more

struct Operands {
  Tensor dq, dk, dv, dout, out, lse, q, k, v;
  Heads heads;
  float scale;
  size_t stride = padded(heads.width);
  size_t key_blocks = (size_t(heads.keys) + key_block - 1) / key_block;
};

// The gradients of the keys of one key head while they grow, in rows; dk lacks the factor scale.
struct KeySums {
  float *dk, *dv;

  static size_t size(const Operands& o) { return 2 * o.key_blocks * key_block * o.stride; }
  KeySums(const Operands& o, float* memory) : dk(memory), dv(memory + size(o) / 2) {}
};

// Up to row_block queries, filled up with zeros to a multiple of 8.
struct Rows {
  size_t begin, count;
  float *query, *dout;                    // rows
  float *query_room, *dout_room;          // for the stacks
  const float *query_stack, *dout_stack;  // stacked
  float* dq;                              // rows; lacks the factor scale
  float lse[row_block];                   // base 2
  float delta[row_block];                 // sum of dout * out
  int32_t first[row_block], last[row_block];
  Sight sight;
};

struct Span {
  size_t begin, end;
};

// The strips of a key head pass the blocks of keys one after the other: the strip with the last rows goes first.
class Turns {
 public:
  explicit Turns(size_t strips) : passed_(strips + 1) { passed_.back() = std::numeric_limits<size_t>::max(); }
  void wait(size_t strip, size_t key_block) const {
    while (passed_[strip + 1].load(std::memory_order_acquire) <= key_block) std::this_thread::yield();
  }
  void pass(size_t strip, size_t key_blocks) { passed_[strip].store(key_blocks, std::memory_order_release); }

 private:
  std::vector<std::atomic<size_t>> passed_;
};

template <Lane lane>
class Strip {
 public:
  Strip(const Operands& operands, size_t row_blocks) : o_(operands), scratch_(row_blocks * rows_size(operands) + keys_size(operands)) {
    for (size_t i = 0; i < row_blocks; ++i) take(blocks_[i]);
  }

  static size_t rows_size(const Operands& o) {
    return row_block * (2 * row_lanes<lane>(o.heads.width) + o.stride) + 2 * stack_size<lane>(row_block, o.heads.width);
  }

  // The rows begin .. begin + count of one key head.
  void run(KeyHead of, const KeySums& sums, size_t begin, size_t count, size_t strip, Turns& turns) {
    of_ = of;
    size_t used = 0;
    for (size_t at = 0; at < count; at += row_block) load_rows(blocks_[used++], begin + at, std::min(row_block, count - at));
    const size_t end = size_t(blocks_[used - 1].sight.any_last) / key_block + 1;
    for (size_t b = 0; b < end; ++b) {
      bool loaded = false;
      turns.wait(strip, b);
      for (size_t i = used; i-- > 0;) {
        if (!blocks_[i].sight.any(int32_t(b * key_block), int32_t((b + 1) * key_block) - 1)) continue;
        if (!loaded) load_keys(b * key_block);
        loaded = true;
        add_rows(blocks_[i], sums);
      }
      turns.pass(strip, b + 1);
    }
    turns.pass(strip, o_.key_blocks);
    for (size_t i = 0; i < used; ++i) store_rows(blocks_[i]);
  }

 private:
  static size_t keys_size(const Operands& o) {
    return key_block * 4 * row_lanes<lane>(o.heads.width) + stack_size<lane>(key_block, o.heads.width) +
           row_block * (2 * panel_width + ds_lanes);
  }

  void take(Rows& rows) {
    rows.query = scratch_.take(row_block * lead_);
    rows.dout = scratch_.take(row_block * lead_);
    rows.query_room = scratch_.take(stack_size<lane>(row_block, o_.heads.width));
    rows.dout_room = scratch_.take(stack_size<lane>(row_block, o_.heads.width));
    rows.dq = scratch_.take(row_block * o_.stride);
  }

  void load_rows(Rows& rows, size_t begin, size_t count) {
    rows.begin = begin;
    rows.count = count;
    o_.heads.each_row(of_, int64_t(begin), int64_t(count), [&](size_t r, QueryRow row) {
      const int64_t offset = o_.heads.query_offset(row);
      load_row<lane>(rows.query + r * lead_, o_.q, offset, o_.heads.width);
      load_row<lane>(rows.dout + r * lead_, o_.dout, offset, o_.heads.width);
      rows.lse[r] = o_.lse.as<float>()[o_.heads.lse_offset(row)] * log2_e;
      rows.delta[r] = dot(o_.dout, o_.out, offset);
      rows.first[r] = o_.heads.first_key(row);
      rows.last[r] = o_.heads.last_key(row);
    });
    rows.sight = Sight(rows.first, rows.last, count);
    const size_t padded_count = round_up(count, 8), rest = padded_count - count;
    std::fill_n(rows.query + count * lead_, rest * lead_, 0.0f);
    std::fill_n(rows.dout + count * lead_, rest * lead_, 0.0f);
    for (float* x : {rows.lse, rows.delta}) std::fill_n(x + count, rest, 0.0f);
    for (int32_t* x : {rows.first, rows.last}) std::fill_n(x + count, rest, x[count - 1]);
    rows.query_stack = stacked<lane>(rows.query_room, rows.query, padded_count, o_.heads.width);
    rows.dout_stack = stacked<lane>(rows.dout_room, rows.dout, padded_count, o_.heads.width);
    std::fill_n(rows.dq, padded_count * o_.stride, 0.0f);
  }

  float dot(Tensor x, Tensor y, int64_t offset) const {
    return dispatch_float(x.dtype, [&]<class T>() {
      const T *a = x.as<T>() + offset, *b = y.as<T>() + offset;
      return sum_vectors(int64_t(o_.heads.width), [&](auto d, int64_t i) { return hn::Mul(load(d, a + i), load(d, b + i)); });
    });
  }

  // Keys after the last one are zeros.
  void load_keys(size_t first_key) {
    first_key_ = first_key;
    for (size_t j = 0; j < key_block; ++j) {
      const int64_t key = int64_t(first_key + j);
      const bool real = key < o_.heads.keys;
      const int64_t offset = real ? o_.heads.key_offset(of_, key) : 0;
      load_row<lane>(keys_ + j * lead_, o_.k, offset, o_.heads.width, real);
      load_row<lane>(values_ + j * lead_, o_.v, offset, o_.heads.width, real);
    }
    for (size_t p = 0; p < key_block * lead_; p += panel_width * lead_) {
      transpose(key_panels_ + p, panel_width, keys_ + p, lead_, panel_width, round_up(depth_, 4));
      transpose(value_panels_ + p, panel_width, values_ + p, lead_, panel_width, round_up(depth_, 4));
    }
    key_stack_ = stacked<lane>(key_room_, keys_, key_block, o_.heads.width);
  }

  // Which rows see panel p, to multiples of 8.
  Span seeing(const Rows& rows, size_t p) const {
    const int32_t from = int32_t(first_key_ + p * panel_width), to = from + int32_t(panel_width) - 1;
    const auto sees = [&](size_t r) { return rows.first[r] <= to && rows.last[r] >= from; };
    Span span = {0, rows.count};
    if (!rows.sight.any(from, to)) return {0, 0};
    while (!sees(span.begin)) ++span.begin;
    while (!sees(span.end - 1)) --span.end;
    return {span.begin / 8 * 8, round_up(span.end, 8)};
  }

  void add_rows(Rows& rows, const KeySums& sums) {
    Span seen[panels_of_block], all = {row_block, 0};
    size_t first = panels_of_block, end = 0;
    for (size_t p = 0; p < panels_of_block; ++p) {
      seen[p] = seeing(rows, p);
      if (seen[p].begin == seen[p].end) continue;
      all = {std::min(all.begin, seen[p].begin), std::max(all.end, seen[p].end)};
      first = std::min(first, p);
      end = p + 1;
    }
    for (size_t p = first; p < end; ++p) add_panel(rows, sums, p, seen[p], all);
    const Block ds = {ds_row(all.begin, first), ds_lanes}, keys = {key_stack_ + first * panel_lanes * o_.stride, o_.stride};
    row_product<lane, false, Start::sum>(rows.dq + all.begin * o_.stride, all.end - all.begin, ds, keys, (end - first) * panel_lanes);
  }

  // Adds what the rows that see panel p have to give to its keys; leaves ds of all rows in ds_rows.
  void add_panel(const Rows& rows, const KeySums& sums, size_t p, Span seen, Span all) {
    for (size_t r = all.begin; r < seen.begin; ++r) std::fill_n(ds_row(r, p), panel_lanes, 0.0f);
    for (size_t r = seen.end; r < all.end; ++r) std::fill_n(ds_row(r, p), panel_lanes, 0.0f);
    const size_t count = seen.end - seen.begin, panel = p * panel_width * lead_, key = first_key_ + p * panel_width;
    panel_product<lane>(p_, count, {rows.query + seen.begin * lead_, lead_}, key_panels_ + panel, depth_);
    panel_product<lane>(ds_, count, {rows.dout + seen.begin * lead_, lead_}, value_panels_ + panel, depth_);
    const bool all_seen = rows.sight.all(int32_t(key), int32_t(key + panel_width) - 1);
    all_seen ? differentiate<false>(rows, p, seen) : differentiate<true>(rows, p, seen);
    const size_t stack = seen.begin / per_lane<lane> * o_.stride, depth = count / per_lane<lane>;
    const Block dout = {rows.dout_stack + stack, o_.stride}, query = {rows.query_stack + stack, o_.stride};
    row_product<lane, true, Start::sum>(sums.dv + key * o_.stride, panel_width, {p_, panel_width}, dout, depth);
    row_product<lane, true, Start::sum>(sums.dk + key * o_.stride, panel_width, {ds_, panel_width}, query, depth);
  }

  float* ds_row(size_t row, size_t p) { return ds_rows_ + row * ds_lanes + p * panel_lanes; }

  // p = 2^(scale * score - lse) in place of the score, ds = p * (dp - delta) in place of dp.
  template <bool masked>
  void differentiate(const Rows& rows, size_t panel, Span seen) {
    const FloatVec scale = hn::Set(floats, o_.scale * log2_e);
    const int32_t key = int32_t(first_key_ + panel * panel_width);
    for (size_t r = 0; r < seen.end - seen.begin; r += 2) {
      for (size_t c = 0; c < panel_width; c += lanes) {
        FloatVec p[2], ds[2];
#pragma GCC unroll 2
        for (size_t i = 0; i < 2; ++i) {
          const size_t at = (r + i) * panel_width + c, row = seen.begin + r + i;
          p[i] = exp2(hn::MulSub(hn::Load(floats, p_ + at), scale, hn::Set(floats, rows.lse[row])));
          if constexpr (masked) {
            const IntVec here = hn::Iota(ints, key + int32_t(c));
            const auto outside = hn::Or(hn::Gt(hn::Set(ints, rows.first[row]), here), hn::Gt(here, hn::Set(ints, rows.last[row])));
            p[i] = hn::IfThenZeroElse(hn::RebindMask(floats, outside), p[i]);
          }
          ds[i] = hn::Mul(p[i], hn::Sub(hn::Load(floats, ds_ + at), hn::Set(floats, rows.delta[row])));
          store_in_row<lane>(ds_row(row, panel), c, ds[i]);
        }
        store_two<lane>(p_ + c, r / 2, p[0], p[1]);
        store_two<lane>(ds_ + c, r / 2, ds[0], ds[1]);
      }
    }
  }

  void store_rows(const Rows& rows) {
    o_.heads.each_row(of_, int64_t(rows.begin), int64_t(rows.count), [&](size_t r, QueryRow row) {
      store_row(o_.dq, o_.heads.query_offset(row), rows.dq + r * o_.stride, o_.heads.width, o_.scale);
    });
  }

  static constexpr size_t panel_lanes = panel_width / per_lane<lane>, ds_lanes = panels_of_block * panel_lanes;
  const Operands& o_;
  KeyHead of_ = {};
  size_t first_key_ = 0;
  size_t depth_ = depth_lanes<lane>(o_.heads.width), lead_ = row_lanes<lane>(o_.heads.width);
  Scratch scratch_;
  float* keys_ = scratch_.take(key_block * lead_);    // rows
  float* values_ = scratch_.take(key_block * lead_);  // rows
  float* key_room_ = scratch_.take(stack_size<lane>(key_block, o_.heads.width));
  const float* key_stack_ = nullptr;                        // stacked
  float* key_panels_ = scratch_.take(key_block * lead_);    // panels (D, keys)
  float* value_panels_ = scratch_.take(key_block * lead_);  // panels
  float* p_ = scratch_.take(row_block * panel_width);       // panel (rows, keys): scores, then probabilities
  float* ds_ = scratch_.take(row_block * panel_width);      // panel: their gradient
  float* ds_rows_ = scratch_.take(row_block * ds_lanes);    // rows of it
  Rows blocks_[most_row_blocks];
};

void store_keys(const Operands& o, KeyHead of, const KeySums& sums, size_t block) {
  const size_t end = std::min((block + 1) * key_block, size_t(o.heads.keys));
  for (size_t key = block * key_block; key < end; ++key) {
    const int64_t offset = o.heads.key_offset(of, int64_t(key));
    store_row(o.dk, offset, sums.dk + key * o.stride, o.heads.width, o.scale);
    store_row(o.dv, offset, sums.dv + key * o.stride, o.heads.width, 1);
  }
}

// The strips of `count` key heads from `first`. They are handed out in the order of turns, so whom a strip waits for is under way.
template <Lane lane>
void run_strips(int threads, const Operands& o, size_t first, size_t count, float* memory) {
  const size_t all = size_t(o.heads.rows()), in_cache = most_strip_bytes / (sizeof(float) * Strip<lane>::rows_size(o));
  const size_t row_blocks = pieces_together(threads, count * ((all + row_block - 1) / row_block), std::min(in_cache, most_row_blocks));
  const size_t rows = row_blocks * row_block, strips = (all + rows - 1) / rows;
  std::vector<Turns> turns;
  for (size_t i = 0; i < count; ++i) turns.emplace_back(strips);
  hand_out(threads, count * strips, [&] {
    return [&, worker = Strip<lane>(o, row_blocks)](size_t i) mutable {
      const size_t head = i % count, strip = strips - 1 - i / count, begin = strip * rows;
      const KeySums sums(o, memory + head * KeySums::size(o));
      worker.run(o.heads.key_head(int64_t(first + head)), sums, begin, std::min(rows, all - begin), strip, turns[head]);
    };
  });
}

// As many key heads at a time as most_gradient_bytes allows: they are independent, so the bits do not depend on it.
template <Lane lane>
void run_key_heads(int threads, const Operands& o, int64_t key_heads) {
  const size_t size = KeySums::size(o);
  const int64_t together = std::clamp<int64_t>(int64_t(most_gradient_bytes / sizeof(float) / size), 1, std::max<int64_t>(key_heads, 1));
  const auto memory = hwy::AllocateAligned<float>(size * size_t(together));
  const int64_t blocks = int64_t(o.key_blocks);
  for (int64_t first = 0; first < key_heads; first += together) {
    const int64_t count = std::min(together, key_heads - first);
    parallel_chunks(threads, int64_t(size) * count, int64_t(key_block * o.stride),
                    [&](int64_t begin, int64_t end) { std::fill(memory.get() + begin, memory.get() + end, 0.0f); });
    run_strips<lane>(threads, o, size_t(first), size_t(count), memory.get());
    parallel_chunks(threads, count * blocks, 1, [&](int64_t i, int64_t) {
      const KeySums sums(o, memory.get() + size * size_t(i / blocks));
      store_keys(o, o.heads.key_head(first + i / blocks), sums, size_t(i % blocks));
    });
  }
}

void run_attention_backward(int threads, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                            Tensor starts, AttentionShape shape) {
  const Operands operands = {dq, dk, dv, dout, out, lse, q, k, v, Heads(q, k, starts, shape), shape.scale};
  threads = worth_threads(threads, q.size() * k.shape.dim[1]);
  dispatch_lane(q.dtype, [&]<Lane lane>() { run_key_heads<lane>(threads, operands, q.shape.dim[0] * operands.heads.key_heads); });
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
