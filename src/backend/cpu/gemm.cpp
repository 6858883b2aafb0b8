// Sums of products, by panels: the columns of the right-hand matrices are cut into groups; a thread lays a group's panels out (decoding
// 4-bit codes on the way) in memory that stays in its second-level cache, and runs all rows of the left-hand matrices over them, a tile of
// sums in registers at a time. An element of c is summed term by term along k whatever tile it is in, so the cut may depend on the threads.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/gemm.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/panels-inl.h"
#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t most_depth_bytes = 8192;  // of a column in a group's panels: 64 columns are then half of a second-level cache

// Memory of this thread that grows to the largest request; `slot` tells apart pieces in use at once.
template <class T>
T* thread_scratch(int slot, size_t count) {
  thread_local hwy::AlignedFreeUniquePtr<float[]> pieces[3];
  thread_local size_t rooms[3] = {};
  const size_t floats_needed = (count * sizeof(T) + sizeof(float) - 1) / sizeof(float);
  if (rooms[slot] < floats_needed) pieces[slot] = hwy::AllocateAligned<float>(rooms[slot] = floats_needed);
  return reinterpret_cast<T*>(pieces[slot].get());
}

// A left-hand matrix as rows: where it stands, or a copy.
template <class T>
struct Left {
  const T* rows;
  int64_t stride;
};

// Rows whose starts fall on one set of the first-level cache push each other out; pairs need an even end.
template <class T>
bool must_copy(int64_t depth) {
  return size_t(depth) % numbers_in_step<T> != 0 || size_t(depth) * sizeof(T) % 2048 == 0;
}

template <class T>
int64_t copied_stride(int64_t depth) {
  return (depth + 31) / 32 * 32 + 32;
}

template <class T>
void copy_rows(int threads, T* to, const Tensor& a, int64_t depth) {
  const int64_t stride = copied_stride<T>(depth);
  parallel_chunks(threads, a.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::copy_n(a.as<const T>() + r * depth, depth, to + r * stride);
      to[r * stride + depth] = T(0);
    }
  });
}

// to (cols, copied_stride(rows)) = the transpose of a, by way of panels: they hold columns step by step.
template <class T>
void copy_transposed(int threads, T* to, const Tensor& a) {
  const int64_t depth = a.rows(), cols = a.cols(), stride = copied_stride<T>(depth);
  const Factor factor(a);
  parallel_chunks(threads, cols, group_width, [&](int64_t begin, int64_t end) {
    const PanelMaker<T> maker(factor, false);
    constexpr int64_t part = 128;
    HWY_ALIGN float panels[group_width * part];
    for (int64_t k = 0; k < depth; k += part) {
      const int64_t count = std::min(part, depth - k);
      const size_t steps = maker.steps(count);
      maker.make(panels, begin, k, count);
      for (int64_t c = begin; c < end; ++c) {
        const size_t panel = size_t(c - begin) / panel_width, lane = size_t(c - begin) % panel_width;
        const bool single = cols - begin - int64_t(panel * panel_width) <= int64_t(panel_lanes);
        const float* from = panels + panel * steps * panel_width + lane;
        float* out = reinterpret_cast<float*>(to + c * stride + k);
        for (size_t s = 0; s < steps; ++s) std::memcpy(out + s, from + s * (single ? panel_lanes : panel_width), sizeof(float));
      }
    }
  });
}

struct Output {
  const Product& p;
  bool swapped;  // the tile's rows are c's columns

  // sums (rows, panel_width) of the tile at (row, col), cols of them real.
  void store(const float* sums, int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    dispatch_float(p.c.dtype, [&]<class C>() {
      if (swapped) return store_transposed<C>(sums, row, rows, col, cols);
      for (int64_t r = 0; r < rows; ++r) store_row<C>(sums + size_t(r) * panel_width, row + r, col, cols);
    });
  }

 private:
  template <class C>
  void store_row(const float* sums, int64_t row, int64_t col, int64_t cols) const {
    C* to = p.c.as<C>() + row * p.c.cols() + col;
    for_vectors(0, cols, [&](auto d, int64_t i) {
      auto v = hn::Mul(hn::LoadU(d, sums + i), hn::Set(d, p.alpha));
      if (p.accumulate) v = hn::Add(v, load(d, to + i));
      dispatch_float(p.term[0].a.dtype, [&]<class T>() {
        if (!p.bias.empty()) v = hn::Add(v, load(d, p.bias.as<const T>() + col + i));
        if (!p.addend.empty()) v = hn::Add(v, load(d, p.addend.as<const T>() + row * p.c.cols() + col + i));
      });
      tessera::HWY_NAMESPACE::store(v, d, to + i);
    });
  }

  template <class C>
  void store_transposed(const float* sums, int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    for (int64_t j = 0; j < cols; ++j) {
      C* to = p.c.as<C>() + (col + j) * p.c.cols() + row;
      for (int64_t r = 0; r < rows; ++r) {
        const float v = sums[size_t(r) * panel_width + size_t(j)] * p.alpha;
        to[r] = C(p.accumulate ? v + float(to[r]) : v);
      }
    }
  }
};

template <class T, Dot dot>
void run_tile(float* sums, bool continues, const Segment<T>* segments, size_t count, int64_t rows, bool single) {
  const auto run = [&]<size_t n>() {
    if (single) return product_tile<T, dot, n, 1>(sums, continues, segments, count);
    product_tile<T, dot, n, 2>(sums, continues, segments, count);
  };
  if constexpr (tile_rows > 8)
    if (rows == 12) return run.template operator()<12>();
  if constexpr (tile_rows > 4)
    if (rows == 8) return run.template operator()<8>();
  if (rows == 4) return run.template operator()<4>();
  if (rows == 2) return run.template operator()<2>();
  run.template operator()<1>();
}

// The rows of the next tile when `left` are left: one of the heights there are.
int64_t tile_height(int64_t left) {
  for (const int64_t rows : {12, 8, 4, 2})
    if (rows <= int64_t(tile_rows) && rows <= left) return rows;
  return 1;
}

// A product with its left-hand matrices as rows.
template <class T, Dot dot>
class Engine {
 public:
  struct Part {
    Left<T> left;
    const Factor* right;
    int64_t depth;
  };

  Engine(const Product& p, bool swapped, int64_t m, int64_t n, bool transpose_b)
      : output_{p, swapped}, m_(m), n_(n), transpose_b_(transpose_b) {}

  void add(const Part& part) {
    parts_[count_++] = part;
    depth_ += part.depth;
  }

  void run(int threads) const {
    const int64_t groups = (n_ + group_width - 1) / group_width;
    const int64_t bands = std::clamp<int64_t>((8 * threads + groups - 1) / groups, 1, std::max<int64_t>(1, m_ / 24));
    const int64_t tall = (m_ + bands - 1) / bands, band = (tall + int64_t(tile_rows) - 1) / int64_t(tile_rows) * int64_t(tile_rows);
    const int64_t used = (m_ + band - 1) / band, pieces = groups * used;
    parallel_chunks(threads, pieces, (pieces + threads - 1) / threads, [&](int64_t begin, int64_t end) {
      Worker worker(*this);
      for (int64_t i = begin; i < end; ++i) worker.run(i / used, i % used * band, std::min(m_, (i % used + 1) * band));
    });
  }

 private:
  // What one thread has laid out: the panels of a group, for a stretch of depth that fits the cache.
  class Worker {
   public:
    explicit Worker(const Engine& e) : e_(e), whole_(e.depth_ <= most_depth), panels_(thread_scratch<float>(0, panel_floats())) {}

    void run(int64_t group, int64_t begin, int64_t end) {
      col_ = group * group_width;
      if (whole_) {
        if (group != made_) count_ = 0, lay_out(0, 0);
        made_ = group;
        return tiles(begin, end, nullptr, false, true);
      }
      float* sums = thread_scratch<float>(1, size_t(end - begin + int64_t(tile_rows)) * size_t(group_width));
      int part = 0;
      int64_t k = 0;
      for (bool first = true; part < e_.count_; first = false) {
        std::tie(part, k) = lay_out(part, k);
        tiles(begin, end, sums, !first, part == e_.count_);
      }
    }

   private:
    static constexpr int64_t most_depth = most_depth_bytes / int64_t(sizeof(T));
    size_t panel_floats() const {
      const int64_t depth = std::min(e_.depth_, most_depth) + int64_t(e_.count_) * int64_t(numbers_in_step<T>);
      return size_t(group_width) * PanelMaker<T>::steps(depth) + panel_width;
    }

    // Makes the panels from (part, k) on, as much as fits; returns where it stopped.
    std::pair<int, int64_t> lay_out(int part, int64_t k) {
      count_ = 0;
      float* to = panels_;
      for (int64_t room = most_depth; part < e_.count_ && room > 0; ++part, k = 0) {
        const Part& p = e_.parts_[part];
        const int64_t depth = std::min(room, p.depth - k);
        PanelMaker<T>(*p.right, e_.transpose_b_).make(to, col_, k, depth);
        laid_[count_++] = {p.left.rows + k, p.left.stride, to, PanelMaker<T>::steps(depth)};
        to += size_t(group_width) * PanelMaker<T>::steps(depth);
        room -= depth;
        if (k + depth < p.depth) return {part, k + depth};
      }
      return {part, k};
    }

    // `kept`: sums of all rows between stretches of depth; null when there is one stretch.
    void tiles(int64_t begin, int64_t end, float* kept, bool continues, bool last) {
      HWY_ALIGN float local[tile_rows * panel_width];
      for (int64_t row = begin, height; row < end; row += height) {
        height = tile_height(end - row);
        for (size_t panel = 0; panel < group_panels && col_ + int64_t(panel * panel_width) < e_.n_; ++panel) {
          const int64_t col = col_ + int64_t(panel * panel_width), cols = std::min(e_.n_ - col, int64_t(panel_width));
          float* sums = kept ? kept + size_t(row - begin) * size_t(group_width) + panel * size_t(height) * panel_width : local;
          Segment<T> segments[Product::most_terms];
          for (int i = 0; i < count_; ++i) {
            const Laid& l = laid_[i];
            segments[i] = {l.a + row * l.stride, size_t(l.stride), l.panels + panel * l.steps * panel_width, l.steps,
                           l.a + std::min(row + height, end - height) * l.stride};
          }
          run_tile<T, dot>(sums, continues, segments, size_t(count_), height, cols <= int64_t(panel_lanes));
          if (last) e_.output_.store(sums, row, height, col, cols);
        }
      }
    }

    struct Laid {
      const T* a;
      int64_t stride;
      const float* panels;
      size_t steps;
    };
    const Engine& e_;
    const bool whole_;
    float* panels_;
    Laid laid_[Product::most_terms];
    int count_ = 0;
    int64_t col_ = 0, made_ = -1;
  };

  Output output_;
  int64_t m_, n_;
  bool transpose_b_;
  Part parts_[Product::most_terms];
  int count_ = 0;
  int64_t depth_ = 0;
};

// The gradient of a narrow matrix (an adapter's B): c^T = b^T a instead, so that the long matrix is the one laid out in panels.
bool better_swapped(const Product& p) {
  return p.terms == 1 && p.transpose_a && !p.transpose_b && !p.term[0].b.is_codes() && p.c.cols() <= 64 && p.c.cols() < p.c.rows();
}

template <class T, Dot dot>
void multiply(int threads, const Product& p) {
  const bool swapped = better_swapped(p);
  const int64_t m = swapped ? p.c.cols() : p.c.rows(), n = swapped ? p.c.rows() : p.c.cols();
  Engine<T, dot> engine(p, swapped, m, n, p.transpose_b);
  int64_t copies = 0, products = 0;
  const auto left = [&](int i) { return swapped ? p.term[i].b.dense : p.term[i].a; };
  const auto depth = [&](int i) { return p.transpose_a ? left(i).rows() : left(i).cols(); };
  const auto copied = [&](int i) { return p.transpose_a || must_copy<T>(depth(i)); };
  for (int i = 0; i < p.terms; ++i) {
    products += m * n * depth(i);
    if (copied(i)) copies += m * copied_stride<T>(depth(i));
  }
  threads = worth_threads(threads, products);
  T* next = copies ? thread_scratch<T>(2, size_t(copies)) : nullptr;
  Factor swapped_right;
  if (swapped) swapped_right = p.term[0].a;
  for (int i = 0; i < p.terms; ++i) {
    const int64_t k = depth(i);
    if (k == 0) continue;
    const Factor* right = swapped ? &swapped_right : &p.term[i].b;
    if (!copied(i)) {
      engine.add({{left(i).template as<const T>(), k}, right, k});
      continue;
    }
    if (p.transpose_a)
      copy_transposed(threads, next, left(i));
    else
      copy_rows(threads, next, left(i), k);
    engine.add({{next, copied_stride<T>(k)}, right, k});
    next += m * copied_stride<T>(k);
  }
  engine.run(threads);
}

void gemm(int threads, const Product& p) {
  if (p.c.size() == 0) return;
  if (p.term[0].a.dtype == Dtype::f32) return multiply<float, Dot::native>(threads, p);
  if constexpr (may_have_bf16_dot)
    if (has_bf16_dot()) return multiply<Bf16, Dot::native>(threads, p);
  multiply<Bf16, Dot::widened>(threads, p);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(gemm);
}  // namespace

void CpuBackend::gemm(const Product& p) { HWY_DYNAMIC_DISPATCH(gemm)(threads_, p); }

}  // namespace tessera
#endif
