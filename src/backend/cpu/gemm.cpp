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
  thread_local hwy::AlignedFreeUniquePtr<float[]> pieces[4];
  thread_local size_t rooms[4] = {};
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

int64_t copied_stride(int64_t depth) { return (depth + 31) / 32 * 32 + 32; }

// to = [k, k + depth) of each row.
template <class T>
void copy_rows(int threads, T* to, Left<T> from, int64_t rows, int64_t k, int64_t depth) {
  const int64_t stride = copied_stride(depth);
  parallel_chunks(threads, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::copy_n(from.rows + r * from.stride + k, depth, to + r * stride);
      to[r * stride + depth] = T(0);
    }
  });
}

// to (cols, copied_stride(rows)) = the transpose of a, by way of panels: they hold columns step by step.
template <class T>
void copy_transposed(int threads, T* to, const Tensor& a) {
  constexpr int64_t part = 128;
  const int64_t depth = a.rows(), cols = a.cols(), stride = copied_stride(depth);
  const Factor factor(a);
  const PanelMaker<T> maker(factor, false);
  parallel_chunks(threads, cols, group_width, [&](int64_t begin, int64_t end) {
    HWY_ALIGN float panels[group_width * part];
    for (int64_t k = 0; k < depth; k += part) {
      const int64_t count = std::min(part, depth - k);
      const size_t steps = maker.steps(count);
      maker.make(panels, begin, k, count);
      for (int64_t c = begin; c < end; c += int64_t(panel_lanes)) {
        const size_t panel = size_t(c - begin) / panel_width, lane = size_t(c - begin) % panel_width;
        const size_t width = cols - begin - int64_t(panel * panel_width) <= int64_t(panel_lanes) ? panel_lanes : panel_width;
        const float* from = panels + panel * steps * panel_width + lane;
        float* out = reinterpret_cast<float*>(to + c * stride + k);
        const size_t lanes_used = std::min(size_t(end - c), panel_lanes), apart = size_t(stride) / numbers_in_step<T>;
        size_t s = 0;
        for (; s + panel_lanes <= steps; s += panel_lanes) transpose_lanes(out + s, apart, from + s * width, width, lanes_used);
        for (; s < steps; ++s)
          for (size_t l = 0; l < lanes_used; ++l) std::memcpy(out + l * apart + s, from + s * width + l, sizeof(float));
      }
    }
  });
}

struct Output {
  const Product& p;
  bool swapped;  // the tile's rows are c's columns

  // Fetches what store() will add to.
  void prefetch(int64_t row, int64_t rows, int64_t col) const {
    if (!p.accumulate || swapped) return;
    const int64_t size = int64_t(size_of(p.c.dtype));
    for (int64_t r = row; r < row + rows; ++r) {
      const char* at = p.c.as<const char>() + (r * p.c.cols() + col) * size;
      for (int64_t i = 0; i < int64_t(panel_width) * size; i += 64) hwy::Prefetch(at + i);
    }
  }

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

// A product with its left-hand matrices as rows. Its depth is cut into stretches whose panels fit the second-level cache; a product of
// several stretches keeps the sums of all its tiles in between.
template <class T, Dot dot>
class Engine {
 public:
  struct Part {
    Left<T> left;
    bool copy;  // the rows are copied, stretch by stretch
    const Factor* right;
    int64_t begin, depth;  // columns of left, rows of op(right)
  };

  Engine(const Product& p, bool swapped, int64_t m, int64_t n, bool transpose_b)
      : output_{p, swapped}, m_(m), n_(n), transpose_b_(transpose_b) {}

  void add(const Part& part) {
    parts_[count_++] = part;
    depth_ += part.depth;
  }

  void run(int threads) {
    const int64_t groups = (n_ + group_width - 1) / group_width;
    const int64_t bands = std::clamp<int64_t>((8 * threads + groups - 1) / groups, 1, std::max<int64_t>(1, m_ / 24));
    const int64_t tall = (m_ + bands - 1) / bands, band = (tall + int64_t(tile_rows) - 1) / int64_t(tile_rows) * int64_t(tile_rows);
    const int64_t used = (m_ + band - 1) / band, pieces = groups * used;
    if (depth_ > most_depth) kept_ = thread_scratch<float>(1, size_t(groups * group_width * (m_ + used * int64_t(tile_rows))));
    int part = 0;
    int64_t k = 0;
    for (bool first = true; first || part < count_; first = false) {
      Stretch stretch = next_stretch(part, k);
      stretch.continues = !first, stretch.last = part == count_;
      copy(threads, stretch);
      parallel_chunks(threads, pieces, (pieces + threads - 1) / threads, [&](int64_t begin, int64_t end) {
        Worker worker(*this, stretch);
        for (int64_t i = begin; i < end; ++i) worker.run(i / used, i % used * band, std::min(m_, (i % used + 1) * band));
      });
    }
  }

 private:
  static constexpr int64_t most_depth = most_depth_bytes / int64_t(sizeof(T));

  struct Stretch {
    Part parts[Product::most_terms];
    int count = 0;
    bool continues = false, last = true;
  };

  // From (part, k) on, as much as fits; both then stand where it ends.
  Stretch next_stretch(int& part, int64_t& k) const {
    Stretch s;
    for (int64_t room = most_depth; part < count_ && room > 0;) {
      const Part& p = parts_[part];
      const int64_t depth = std::min(room, p.depth - k);
      s.parts[s.count++] = {p.left, p.copy, p.right, k, depth};
      room -= depth, k += depth;
      if (k == p.depth) ++part, k = 0;
    }
    return s;
  }

  void copy(int threads, Stretch& s) const {
    int64_t size = 0;
    for (int i = 0; i < s.count; ++i)
      if (s.parts[i].copy) size += m_ * copied_stride(s.parts[i].depth);
    T* next = size ? thread_scratch<T>(2, size_t(size)) : nullptr;
    for (int i = 0; i < s.count; ++i) {
      Part& p = s.parts[i];
      if (p.copy) copy_rows(threads, next, p.left, m_, p.begin, p.depth);
      p.left = p.copy ? Left<T>{next, copied_stride(p.depth)} : Left<T>{p.left.rows + p.begin, p.left.stride};
      if (p.copy) next += m_ * p.left.stride;
    }
  }

  // One thread: it has laid out the panels of a group, for one stretch.
  class Worker {
   public:
    Worker(const Engine& e, const Stretch& s) : e_(e), s_(s), panels_(thread_scratch<float>(0, size())) {}

    void run(int64_t group, int64_t begin, int64_t end) {
      col_ = group * group_width;
      if (group != made_) lay_out();
      made_ = group;
      tiles(begin, end);
    }

   private:
    size_t size() const {
      size_t steps = 0;
      for (int i = 0; i < s_.count; ++i) steps += PanelMaker<T>::steps(s_.parts[i].depth);
      return size_t(group_width) * steps;
    }

    void lay_out() {
      float* to = panels_;
      for (int i = 0; i < s_.count; ++i) {
        const Part& p = s_.parts[i];
        PanelMaker<T>(*p.right, e_.transpose_b_).make(to, col_, p.begin, p.depth);
        laid_[i] = {to, PanelMaker<T>::steps(p.depth)};
        to += size_t(group_width) * laid_[i].steps;
      }
    }

    void tiles(int64_t begin, int64_t end) const {
      for (int64_t row = begin, height; row < end; row += height) {
        height = tile_height(end - row);
        for (size_t panel = 0; panel < group_panels && col_ + int64_t(panel * panel_width) < e_.n_; ++panel)
          tile(row, height, std::min(row + height, end - height), panel);
      }
    }

    void tile(int64_t row, int64_t height, int64_t next_row, size_t panel) const {
      HWY_ALIGN float local[tile_rows * panel_width];
      const int64_t col = col_ + int64_t(panel * panel_width), cols = std::min(e_.n_ - col, int64_t(panel_width));
      float* sums = e_.kept_ ? e_.kept_ + (col_ * e_.m_ + row * group_width) + int64_t(panel) * height * int64_t(panel_width) : local;
      Segment<T> segments[Product::most_terms];
      for (int i = 0; i < s_.count; ++i) {
        const Left<T>& a = s_.parts[i].left;
        segments[i] = {a.rows + row * a.stride, size_t(a.stride), laid_[i].panels + panel * laid_[i].steps * panel_width, laid_[i].steps,
                       a.rows + next_row * a.stride};
      }
      if (s_.last) e_.output_.prefetch(row, height, col);
      run_tile<T, dot>(sums, s_.continues, segments, size_t(s_.count), height, cols <= int64_t(panel_lanes));
      if (s_.last) e_.output_.store(sums, row, height, col, cols);
    }

    struct Laid {
      const float* panels;
      size_t steps;
    };
    const Engine& e_;
    const Stretch& s_;
    float* panels_;
    Laid laid_[Product::most_terms];
    int64_t col_ = 0, made_ = -1;
  };

  Output output_;
  int64_t m_, n_;
  bool transpose_b_;
  Part parts_[Product::most_terms];
  int count_ = 0;
  int64_t depth_ = 0;
  float* kept_ = nullptr;  // sums between stretches: groups of columns, rows of group_width in them
};

// The gradient of a narrow matrix (an adapter's B): c^T = b^T a instead, so that the long matrix is the one laid out in panels.
bool better_swapped(const Product& p) {
  return p.terms == 1 && p.transpose_a && !p.transpose_b && !p.term[0].b.is_codes() && p.c.cols() <= 64 && p.c.cols() < p.c.rows();
}

template <class T, Dot dot>
void multiply(int threads, const Product& p) {
  const bool swapped = better_swapped(p);
  const int64_t m = swapped ? p.c.cols() : p.c.rows(), n = swapped ? p.c.rows() : p.c.cols();
  const Factor swapped_right = swapped ? Factor(p.term[0].a) : Factor();
  const auto left = [&](int i) { return swapped ? p.term[i].b.dense : p.term[i].a; };
  const auto depth = [&](int i) { return p.transpose_a ? left(i).rows() : left(i).cols(); };
  int64_t products = 0, turned = 0;
  for (int i = 0; i < p.terms; ++i) {
    products += m * n * depth(i);
    if (p.transpose_a) turned += m * copied_stride(depth(i));
  }
  threads = worth_threads(threads, products);
  T* next = turned ? thread_scratch<T>(3, size_t(turned)) : nullptr;
  Engine<T, dot> engine(p, swapped, m, n, p.transpose_b);
  for (int i = 0; i < p.terms; ++i) {
    const int64_t k = depth(i);
    if (k == 0) continue;
    Left<T> rows{left(i).template as<const T>(), k};
    if (p.transpose_a) {
      copy_transposed(threads, next, left(i));
      rows = {next, copied_stride(k)};
      next += m * rows.stride;
    }
    engine.add({rows, !p.transpose_a && must_copy<T>(k), swapped ? &swapped_right : &p.term[i].b, 0, k});
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

void CpuBackend::gemm(const Product& p) {
  if (gemm_few_rows(p)) return;
  if (engine_ == ProductEngine::onednn) return gemm_onednn(p);
  HWY_DYNAMIC_DISPATCH(gemm)(threads_, p);
}

}  // namespace tessera
#endif
