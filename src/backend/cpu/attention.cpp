// Forward pass as in FlashAttention-2 (Dao, 2023), with queries in vector lanes: a panel of queries walks over blocks of keys, keeping for
// each lane the largest score so far, the sum of exponentials and the unscaled output. Keys and values are read one number at a time and
// multiply whole panels, so softmax never adds across lanes and any head size runs at full width.
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

class ForwardPanel {
 public:
  ForwardPanel(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape)
      : out_(out), lse_(lse), q_(q), k_(k), v_(v), heads_(q, k, starts, shape), scale_(shape.scale) {}

  // The rows begin .. begin + panel_width of one (batch, key head).
  void run(int64_t pair, int64_t begin) {
    pair_ = pair;
    begin_ = begin;
    count_ = std::min<int64_t>(panel_width, heads_.rows() - begin);
    load_queries();
    const int32_t first = *std::min_element(first_, first_ + panel_width), end = *std::max_element(last_, last_ + panel_width) + 1;
    for (int32_t key = first; key < end; key += int32_t(key_block)) add_keys(key, std::min(size_t(end - key), key_block));
    store_outputs();
  }

 private:
  // Rows after the last one repeat it.
  void load_queries() {
    for (int64_t r = 0; r < int64_t(panel_width); ++r) {
      const int64_t row = begin_ + std::min(r, count_ - 1);
      load_row(rows_ + size_t(r) * lead_, q_, heads_.query_offset(pair_, row), heads_.width);
      first_[r] = heads_.first_key(pair_, row);
      last_[r] = heads_.last_key(row);
    }
    transpose(query_, panel_width, rows_, lead_, panel_width, depth_);
    std::fill(output_, output_ + depth_ * panel_width, 0.0f);
    std::fill(largest_, largest_ + panel_width, -FLT_MAX);
    std::fill(sum_, sum_ + panel_width, 0.0f);
  }

  void add_keys(int32_t key, size_t count) {
    const size_t rows = round_up(count, 8);
    for (size_t j = 0; j < rows; ++j) {
      const int64_t offset = heads_.key_offset(pair_, key + int64_t(std::min(j, count - 1)));
      load_row(keys_ + j * lead_, k_, offset, heads_.width);
      load_row(values_ + j * lead_, v_, offset, heads_.width);
    }
    panel_product<false, Start::zero>(scores_, rows, {keys_, lead_}, query_, heads_.width);
    const bool all_seen =
        *std::max_element(first_, first_ + panel_width) <= key && *std::min_element(last_, last_ + panel_width) + 1 >= key + int32_t(rows);
    for (size_t at = 0; at < panel_width; at += lanes) softmax(at, key, rows, all_seen);
    panel_product<true, Start::scaled>(output_, depth_, {values_, lead_}, scores_, rows, factor_);
  }

  // Scores of the lanes from `at` become exp(score - largest).
  void softmax(size_t at, int32_t key, size_t rows, bool all_seen) {
    const FloatVec scale = hn::Set(floats, scale_), before = hn::Load(floats, largest_ + at);
    const FloatVec hidden = hn::Set(floats, -std::numeric_limits<float>::infinity());
    const IntVec first = hn::Load(ints, first_ + at), last = hn::Load(ints, last_ + at);
    FloatVec largest = before;
    for (size_t j = 0; j < rows; ++j) {
      float* score = scores_ + j * panel_width + at;
      FloatVec x = hn::Mul(hn::Load(floats, score), scale);
      if (!all_seen) {
        const IntVec here = hn::Set(ints, key + int32_t(j));
        const auto outside = hn::Or(hn::Gt(first, here), hn::Gt(here, last));
        x = hn::IfThenElse(hn::RebindMask(floats, outside), hidden, x);
      }
      hn::Store(x, floats, score);
      largest = hn::Max(largest, x);
    }
    FloatVec sum = hn::Zero(floats);
    for (size_t j = 0; j < rows; ++j) {
      float* score = scores_ + j * panel_width + at;
      const FloatVec p = exp_nonpositive(hn::Sub(hn::Load(floats, score), largest));
      hn::Store(p, floats, score);
      sum = hn::Add(sum, p);
    }
    const FloatVec factor = exp_nonpositive(hn::Sub(before, largest));
    hn::Store(factor, floats, factor_ + at);
    hn::Store(largest, floats, largest_ + at);
    hn::Store(hn::MulAdd(hn::Load(floats, sum_ + at), factor, sum), floats, sum_ + at);
  }

  void store_outputs() {
    transpose(rows_, lead_, output_, panel_width, depth_, panel_width);
    for (int64_t r = 0; r < count_; ++r) {
      store_row(out_, heads_.query_offset(pair_, begin_ + r), rows_ + size_t(r) * lead_, heads_.width, 1 / sum_[r]);
      lse_.as<float>()[heads_.lse_offset(pair_, begin_ + r)] = largest_[r] + std::log(sum_[r]);
    }
  }

  Tensor out_, lse_, q_, k_, v_;
  Heads heads_;
  float scale_;
  int64_t pair_ = 0, begin_ = 0, count_ = 0;
  size_t lead_ = padded(heads_.width), depth_ = round_up(heads_.width, 8);
  Scratch scratch_{(panel_width + 2 * key_block) * lead_ + panel_width * (2 * depth_ + key_block)};
  float* rows_ = scratch_.take(panel_width * lead_);    // rows of queries, at the end of outputs
  float* keys_ = scratch_.take(key_block * lead_);      // rows
  float* values_ = scratch_.take(key_block * lead_);    // rows
  float* query_ = scratch_.take(depth_ * panel_width);  // panel (D, queries)
  float* output_ = scratch_.take(depth_ * panel_width);
  float* scores_ = scratch_.take(key_block * panel_width);  // panel (keys, queries)
  HWY_ALIGN float largest_[panel_width], sum_[panel_width], factor_[panel_width];
  HWY_ALIGN int32_t first_[panel_width], last_[panel_width];
};

// A piece of work is two panels, one from each end of the queries: together they see the same number of keys whichever piece it is.
void attention(int threads, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  const Heads heads(q, k, starts, shape);
  const int64_t pairs = q.shape.dim[0] * heads.key_heads, width = int64_t(panel_width);
  const int64_t panels = (heads.rows() + width - 1) / width, pieces = (panels + 1) / 2;
  threads = worth_threads(threads, q.size() * k.shape.dim[1]);
  parallel_chunks(threads, pairs * pieces, 1, [&](int64_t piece, int64_t) {
    ForwardPanel panel(out, lse, q, k, v, starts, shape);
    const int64_t pair = piece / pieces, near = piece % pieces, far = panels - 1 - near;
    panel.run(pair, near * width);
    if (far != near) panel.run(pair, far * width);
  });
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
  HWY_DYNAMIC_DISPATCH(attention)(threads_, out, lse, q, k, v, starts, shape);
}

}  // namespace tessera
#endif
