// Forward pass as in FlashAttention-2 (Dao, 2023), with queries in vector lanes: a panel of queries walks over blocks of keys, keeping for
// each lane the largest score so far, the sum of exponentials and the unscaled output. Softmax then never adds across lanes. Several panels
// walk together, so that keys and values are brought into their layout once for all of them.
#include <cfloat>
#include <cmath>
#include <limits>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/attention-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr size_t key_block = 96;
constexpr size_t most_panels = 12, most_panel_bytes = 400 << 10;  // of a group: it leaves room in a cache of 1 MB

// Queries in the lanes of one panel, and softmax so far: scores are base 2 logarithms.
struct Panel {
  int64_t begin, count;
  float* query;   // panel (D, queries)
  float* output;  // rows, to be divided by sum
  Sight sight;
  HWY_ALIGN int32_t first[panel_width], last[panel_width];
  HWY_ALIGN float largest[panel_width], sum[panel_width], factor[panel_width];
};

template <Lane lane>
class PanelGroup {
 public:
  PanelGroup(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape, size_t panels)
      : out_(out), lse_(lse), q_(q), k_(k), v_(v), heads_(q, k, starts, shape), scale_(shape.scale * log2_e), scratch_(size(panels)) {
    for (size_t p = 0; p < panels; ++p) {
      panels_[p].query = scratch_.take(lead_ * panel_width);
      panels_[p].output = scratch_.take(panel_width * stride_);
    }
  }

  static size_t panel_size(size_t width) { return panel_width * (row_lanes<lane>(width) + padded(width)); }

  // The rows begin .. end of one key head, at most as many panels as there is room for.
  void run(int64_t key_head, int64_t begin, int64_t end) {
    of_ = heads_.key_head(key_head);
    int32_t first = std::numeric_limits<int32_t>::max(), last = 0;
    for (count_ = 0; begin < end; ++count_, begin += int64_t(panel_width)) {
      Panel& panel = panels_[count_];
      start(panel, begin, std::min(end - begin, int64_t(panel_width)));
      first = std::min(first, panel.sight.any_first);
      last = std::max(last, panel.sight.any_last);
    }
    for (int32_t key = first / int32_t(key_block) * int32_t(key_block); key <= last; key += int32_t(key_block)) {
      load_keys(key, std::max(first - key, 0), std::min<int32_t>(last - key, key_block - 1));
      for (size_t p = 0; p < count_; ++p) add_keys(panels_[p], key);
    }
    for (size_t p = 0; p < count_; ++p) store(panels_[p]);
  }

 private:
  // Lanes after the last row repeat it.
  void start(Panel& panel, int64_t begin, int64_t count) {
    panel.begin = begin;
    panel.count = count;
    heads_.each_row(of_, begin, count, [&](size_t r, QueryRow row) {
      load_row<lane>(rows_ + r * lead_, q_, heads_.query_offset(row), heads_.width);
      panel.first[r] = heads_.first_key(row);
      panel.last[r] = heads_.last_key(row);
    });
    for (size_t r = size_t(count); r < panel_width; ++r) {
      std::copy_n(rows_ + (r - 1) * lead_, lead_, rows_ + r * lead_);
      panel.first[r] = panel.first[r - 1];
      panel.last[r] = panel.last[r - 1];
    }
    transpose(panel.query, panel_width, rows_, lead_, panel_width, round_up(depth_, 4));
    panel.sight = Sight(panel.first, panel.last, panel_width);
    std::fill_n(panel.output, panel_width * stride_, 0.0f);
    std::fill_n(panel.largest, panel_width, -FLT_MAX);
    std::fill_n(panel.sum, panel_width, 0.0f);
  }

  // The keys key + from to key + to, and those that fill up multiples of 8; zeros after the last one.
  void load_keys(int32_t key, int32_t from, int32_t to) {
    const size_t begin = size_t(from) / 8 * 8, end = round_up(size_t(to) + 1, 8);
    for (size_t j = begin; j < end; ++j) {
      const bool real = key + int64_t(j) < heads_.keys;
      const int64_t offset = real ? heads_.key_offset(of_, key + int64_t(j)) : 0;
      load_row<lane>(keys_ + j * lead_, k_, offset, heads_.width, real);
      load_row<lane>(value_rows_ + j * lead_, v_, offset, heads_.width, real);
    }
    values_ = stacked<lane>(value_room_, value_rows_ + begin * lead_, end - begin, heads_.width) - begin / per_lane<lane> * stride_;
  }

  void add_keys(Panel& panel, int32_t key) {
    const int32_t from = std::max(panel.sight.any_first - key, 0) / 8 * 8;
    const int32_t to = std::min<int32_t>(panel.sight.any_last - key, key_block - 1);
    if (from > to) return;
    const size_t begin = size_t(from), rows = round_up(size_t(to - from) + 1, 8);
    panel_product<lane>(scores_, rows, {keys_ + begin * lead_, lead_}, panel.query, depth_);
    const bool all_seen = panel.sight.all(key + from, key + from + int32_t(rows) - 1);
    for (size_t at = 0; at < panel_width; at += lanes) {
      all_seen ? softmax<false>(panel, at, key + from, rows) : softmax<true>(panel, at, key + from, rows);
    }
    const Block values = {values_ + begin / per_lane<lane> * stride_, stride_};
    row_product<lane, true, Start::scaled>(panel.output, round_up(size_t(panel.count), 8), {scores_, panel_width}, values,
                                           rows / per_lane<lane>, panel.factor);
  }

  // Scores of the lanes from `at` become 2^(score - largest).
  template <bool masked>
  void softmax(Panel& panel, size_t at, int32_t key, size_t rows) {
    const FloatVec scale = hn::Set(floats, scale_), before = hn::Load(floats, panel.largest + at);
    const IntVec first = hn::Load(ints, panel.first + at), last = hn::Load(ints, panel.last + at);
    const auto shown = [&](size_t j, FloatVec x) {
      if constexpr (!masked) return x;
      const IntVec here = hn::Set(ints, key + int32_t(j));
      const auto outside = hn::Or(hn::Gt(first, here), hn::Gt(here, last));
      return hn::IfThenElse(hn::RebindMask(floats, outside), hn::Set(floats, -FLT_MAX), x);
    };
    const auto score = [&](size_t j) { return hn::Load(floats, scores_ + j * panel_width + at); };
    FloatVec even = before, odd = before;
    for (size_t j = 0; j < rows; j += 2) {
      even = hn::Max(even, shown(j, hn::Mul(score(j), scale)));
      odd = hn::Max(odd, shown(j + 1, hn::Mul(score(j + 1), scale)));
    }
    const FloatVec largest = hn::Max(even, odd);
    FloatVec sum = hn::Zero(floats);
    for (size_t j = 0; j < rows; j += 2) {
      const FloatVec p = exp2(shown(j, hn::MulSub(score(j), scale, largest)));
      const FloatVec q = exp2(shown(j + 1, hn::MulSub(score(j + 1), scale, largest)));
      store_two<lane>(scores_ + at, j / 2, p, q);
      sum = hn::Add(sum, hn::Add(p, q));
    }
    const FloatVec factor = exp2(hn::Sub(before, largest));
    hn::Store(factor, floats, panel.factor + at);
    hn::Store(largest, floats, panel.largest + at);
    hn::Store(hn::MulAdd(hn::Load(floats, panel.sum + at), factor, sum), floats, panel.sum + at);
  }

  void store(const Panel& panel) {
    heads_.each_row(of_, panel.begin, panel.count, [&](size_t r, QueryRow row) {
      store_row(out_, heads_.query_offset(row), panel.output + r * stride_, heads_.width, 1 / panel.sum[r]);
      lse_.as<float>()[heads_.lse_offset(row)] = panel.largest[r] * ln_2 + std::log(panel.sum[r]);
    });
  }

  size_t size(size_t panels) const {
    const size_t rows = panel_width + 2 * key_block;
    return panels * panel_size(heads_.width) + rows * lead_ + stack_size<lane>(key_block, heads_.width) + key_block * panel_width;
  }

  Tensor out_, lse_, q_, k_, v_;
  Heads heads_;
  float scale_;
  KeyHead of_ = {};
  size_t depth_ = depth_lanes<lane>(heads_.width), lead_ = row_lanes<lane>(heads_.width), stride_ = padded(heads_.width);
  Scratch scratch_;
  float* rows_ = scratch_.take(panel_width * lead_);      // rows of queries
  float* keys_ = scratch_.take(key_block * lead_);        // rows
  float* value_rows_ = scratch_.take(key_block * lead_);  // rows
  float* value_room_ = scratch_.take(stack_size<lane>(key_block, heads_.width));
  const float* values_ = nullptr;                           // stacked
  float* scores_ = scratch_.take(key_block * panel_width);  // panel (keys, queries)
  Panel panels_[most_panels];
  size_t count_ = 0;  // panels in use
};

// Groups of panels are handed out from the end of the queries, where they see the most keys.
template <Lane lane>
void run_groups(int threads, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  const Heads heads(q, k, starts, shape);
  const size_t key_heads = size_t(q.shape.dim[0] * heads.key_heads), all = size_t(heads.rows());
  const size_t in_cache = most_panel_bytes / (sizeof(float) * PanelGroup<lane>::panel_size(heads.width));
  const size_t panels = pieces_together(threads, key_heads * ((all + panel_width - 1) / panel_width), std::min(in_cache, most_panels));
  const size_t rows = panels * panel_width, groups = (all + rows - 1) / rows;
  hand_out(threads, key_heads * groups, [&] {
    return [&, group = PanelGroup<lane>(out, lse, q, k, v, starts, shape, panels)](size_t i) mutable {
      const size_t begin = (groups - 1 - i / key_heads) * rows;
      group.run(int64_t(i % key_heads), int64_t(begin), int64_t(std::min(begin + rows, all)));
    };
  });
}

void attention(int threads, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  threads = worth_threads(threads, q.size() * k.shape.dim[1]);
  dispatch_lane(q.dtype, [&]<Lane lane>() { run_groups<lane>(threads, out, lse, q, k, v, starts, shape); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(attention);
}  // namespace

void CpuBackend::attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  if (attention_one_query(out, lse, q, k, v, starts, shape)) return;
  HWY_DYNAMIC_DISPATCH(attention)(threads_, out, lse, q, k, v, starts, shape);
}

}  // namespace tessera
#endif
