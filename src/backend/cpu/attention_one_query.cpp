// Attention of one query per head: what a new token asks for. Keys and values are read once, as they are stored, and meet the queries of
// all heads that share them: the limit is the speed of memory. Scores of all keys are kept, so softmax looks at them once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_one_query.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/attention-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t block = 16;  // keys, or values, that are asked of memory while those before them are used

// The sum of blocks of four lanes.
template <class D>
HWY_INLINE auto sum_of_blocks(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<D> half;
    return sum_of_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    return v;
  }
}

// The sums of the lanes of v[0] to v[3].
HWY_INLINE auto four_sums(const FloatVec* v) {
  const auto pair = [](FloatVec a, FloatVec b) { return hn::Add(hn::InterleaveLower(floats, a, b), hn::InterleaveUpper(floats, a, b)); };
  return sum_of_blocks(floats, pair(pair(v[0], v[2]), pair(v[1], v[3])));
}

// The key heads begin to end of one batch row and their query heads. Rows of scores are `room` apart: keys, then what fills the last
// vector.
template <class T>
class OneQuery {
 public:
  OneQuery(const Heads& heads, KeyHead begin, int64_t key_heads)
      : group_(heads.group),
        width_(int64_t(heads.width)),
        stride_(heads.key_heads * width_),
        key_heads_(key_heads),
        heads_(key_heads * group_),
        row_{begin.batch, 0, begin.head * group_},
        first_(heads.first_key(row_)),
        count_(heads.last_key(row_) - first_ + 1),
        room_(int64_t(round_up(size_t(count_), 16))) {}

  void run(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, const Heads& heads, KeyHead begin, float scale) {
    const int64_t query = heads.query_offset(row_), key = heads.key_offset(begin, first_);
    load_queries(q.as<const T>() + query, scale * log2_e);
    each_block(k.as<const T>() + key, [&]<int n>(int64_t h, const T* from, int64_t j, int64_t end) { add_scores<n>(h, from, j, end); });
    for (int64_t h = 0; h < heads_; ++h) sums_[h] = softmax(scores_ + h * room_, &largest_[h]);
    std::fill_n(output_, heads_ * width_, 0.0f);
    each_block(v.as<const T>() + key, [&]<int n>(int64_t h, const T* from, int64_t j, int64_t end) { add_values<n>(h, from, j, end); });
    for (int64_t h = 0; h < heads_; ++h) {
      store_row(out, query + h * width_, output_ + h * width_, size_t(width_), 1 / sums_[h]);
      lse.as<float>()[heads.lse_offset({row_.batch, 0, row_.head + h})] = largest_[h] * ln_2 + std::log(sums_[h]);
    }
  }

 private:
  // Calls f.operator()<n>(h, rows, j, end) for blocks of keys j to end and query heads h to h + n, at most four, of each key head; rows: of
  // that key head, from the first key on.
  template <class F>
  void each_block(const T* rows, F&& f) {
    for (int64_t j = 0; j < count_; j += block) {
      const int64_t end = std::min(count_, j + block);
      for (int64_t head = 0; head < key_heads_; ++head) {
        const T* from = rows + head * width_;
        fetch(from, end, std::min(count_, end + block));
        int64_t h = head * group_;
        const int64_t last = h + group_;
        for (; h + 4 <= last; h += 4) f.template operator()<4>(h, from, j, end);
        if (last - h == 3) f.template operator()<3>(h, from, j, end);
        if (last - h == 2) f.template operator()<2>(h, from, j, end);
        if (last - h == 1) f.template operator()<1>(h, from, j, end);
      }
    }
  }

  // Into the second-level cache: in the first, rows of one head fall on few sets and push each other out.
  void fetch(const T* rows, int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j)
      for (int64_t i = 0; i < width_; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(rows + j * stride_ + i, 0, 2);
  }

  void load_queries(const T* from, float factor) {
    for (int64_t i = 0; i < heads_ * width_; i += int64_t(lanes))
      hn::Store(hn::Mul(load(floats, from + i), hn::Set(floats, factor)), floats, query_ + i);
  }

  // Four keys at a time. After the last key it is read again: softmax fills these scores.
  template <int n>
  void add_scores(int64_t h, const T* key, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j += 4) {
      const T* row[4];
      for (int c = 0; c < 4; ++c) row[c] = key + std::min(j + c, count_ - 1) * stride_;
      FloatVec sum[n][4];
#pragma GCC unroll 4
      for (int r = 0; r < n; ++r) sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = hn::Zero(floats);
      for (int64_t i = 0; i < width_; i += int64_t(lanes)) {
        const FloatVec y[4] = {load(floats, row[0] + i), load(floats, row[1] + i), load(floats, row[2] + i), load(floats, row[3] + i)};
#pragma GCC unroll 4
        for (int r = 0; r < n; ++r) {
          const FloatVec x = hn::Load(floats, query_ + (h + r) * width_ + i);
#pragma GCC unroll 4
          for (int c = 0; c < 4; ++c) sum[r][c] = hn::MulAdd(x, y[c], sum[r][c]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < n; ++r) hn::Store(four_sums(sum[r]), hn::CappedTag<float, 4>(), scores_ + (h + r) * room_ + j);
    }
  }

  // Scores become 2^(score - largest); returns their sum.
  float softmax(float* scores, float* largest) {
    std::fill(scores + count_, scores + room_, -std::numeric_limits<float>::infinity());
    FloatVec most = hn::Load(floats, scores);
    for (int64_t j = 0; j < room_; j += int64_t(lanes)) most = hn::Max(most, hn::Load(floats, scores + j));
    most = hn::MaxOfLanes(floats, most);
    FloatVec sum = hn::Zero(floats);
    for (int64_t j = 0; j < room_; j += int64_t(lanes)) {
      const FloatVec p = exp2(hn::Sub(hn::Load(floats, scores + j), most));
      hn::Store(p, floats, scores + j);
      sum = hn::Add(sum, p);
    }
    *largest = hn::GetLane(most);
    return hn::GetLane(hn::SumOfLanes(floats, sum));
  }

  template <int n>
  void add_values(int64_t h, const T* value, int64_t begin, int64_t end) {
    int64_t column = 0;
    for (; column + 2 * int64_t(lanes) <= width_; column += 2 * int64_t(lanes)) add_columns<n, 2>(h, value, begin, end, column);
    if (column < width_) add_columns<n, 1>(h, value, begin, end, column);
  }

  template <int n, int wide>
  HWY_INLINE void add_columns(int64_t h, const T* value, int64_t begin, int64_t end, int64_t column) {
    FloatVec sum[n][wide];
    float* output = output_ + h * width_ + column;
#pragma GCC unroll 4
    for (int r = 0; r < n; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < wide; ++c) sum[r][c] = hn::Load(floats, output + r * width_ + c * int64_t(lanes));
    for (int64_t j = begin; j < end; ++j) {
      FloatVec y[wide];
#pragma GCC unroll 2
      for (int c = 0; c < wide; ++c) y[c] = load(floats, value + j * stride_ + column + c * int64_t(lanes));
#pragma GCC unroll 4
      for (int r = 0; r < n; ++r) {
        const FloatVec p = hn::Set(floats, scores_[(h + r) * room_ + j]);
#pragma GCC unroll 2
        for (int c = 0; c < wide; ++c) sum[r][c] = hn::MulAdd(p, y[c], sum[r][c]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < n; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < wide; ++c) hn::Store(sum[r][c], floats, output + r * width_ + c * int64_t(lanes));
  }

  int64_t group_, width_, stride_, key_heads_, heads_;
  QueryRow row_;  // of the first head
  int64_t first_, count_, room_;
  int64_t few_ = int64_t(round_up(size_t(heads_), 16));
  Scratch scratch_{size_t(heads_ * (room_ + 2 * width_) + 2 * few_)};
  float* query_ = scratch_.take(size_t(heads_ * width_));
  float* output_ = scratch_.take(size_t(heads_ * width_));
  float* scores_ = scratch_.take(size_t(heads_ * room_));
  float* sums_ = scratch_.take(size_t(few_));
  float* largest_ = scratch_.take(size_t(few_));
};

bool one_query(int threads, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  if (q.shape.dim[1] != 1 || q.cols() % int64_t(std::max<size_t>(lanes, 16)) != 0) return false;
  const Heads heads(q, k, starts, shape);
  threads = worth_threads(threads, 2 * q.size() * heads.keys);
  const int64_t batch = q.shape.dim[0], each = (heads.key_heads + threads - 1) / threads, parts = (heads.key_heads + each - 1) / each;
  dispatch_float(q.dtype, [&]<class T>() {
    parallel_chunks(threads, batch * parts, 1, [&](int64_t i, int64_t) {
      const KeyHead begin = {i / parts, i % parts * each};
      OneQuery<T>(heads, begin, std::min(each, heads.key_heads - begin.head)).run(out, lse, q, k, v, heads, begin, shape.scale);
    });
  });
  return true;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(one_query);
}  // namespace

bool CpuBackend::attention_one_query(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  return HWY_DYNAMIC_DISPATCH(one_query)(threads_, out, lse, q, k, v, starts, shape);
}

}  // namespace tessera
#endif
