// Panels of a right-hand matrix: dense or 4-bit codes, as it stands or transposed. Codes are decoded into a few kilobytes that stay in the
// first-level cache and go from there into the panel. Included once per instruction set, as simd.h.
#if defined(TESSERA_BACKEND_CPU_PANELS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_BACKEND_CPU_PANELS_INL_H
#undef TESSERA_BACKEND_CPU_PANELS_INL_H
#else
#define TESSERA_BACKEND_CPU_PANELS_INL_H
#endif

#include <algorithm>
#include <cstring>

#include "backend/cpu/codes4-inl.h"
#include "backend/cpu/product-inl.h"
#include "core/product.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t group_width = 64;  // columns whose panels are made together: one block of 4-bit codes
constexpr size_t group_panels = size_t(group_width) / panel_width, group_vectors = size_t(group_width) / panel_lanes;
constexpr int64_t stage_depth = 256, stage_rows = 64;

// to (rows_padded, stride) = the part of b from (row, col) on, zeros around it.
template <class T>
void fill_stage(T* to, int64_t stride, const Factor& b, int64_t row, int64_t rows, int64_t rows_padded, int64_t col, int64_t cols,
                int64_t cols_padded) {
  const int64_t width = b.cols();
  for (int64_t r = 0; r < rows; ++r) {
    T* out = to + r * stride;
    if (b.is_codes())
      decode_values(out, b.codes, (row + r) * width + col, cols);
    else
      std::copy_n(b.dense.as<const T>() + (row + r) * width + col, cols, out);
    std::fill(out + cols, out + cols_padded, T(0));
  }
  for (int64_t r = rows; r < rows_padded; ++r) std::fill_n(to + r * stride, cols_padded, T(0));
}

// The panels of columns [col, col + group_width) of op(b), depth [k, k + depth), one after another, `steps` steps each. Columns beyond the
// last are zeros; a panel that holds none, or none in its second vector, is left undefined there.
template <class T>
class PanelMaker {
 public:
  PanelMaker(const Factor& b, bool transposed) : b_(b), transposed_(transposed), columns_(transposed ? b.rows() : b.cols()) {}

  static size_t steps(int64_t depth) { return (size_t(depth) + numbers - 1) / numbers; }

  void make(float* to, int64_t col, int64_t k, int64_t depth) const {
    if (transposed_) return from_rows(to, col, k, depth);
    from_columns(to, col, k, depth);
  }

 private:
  static constexpr size_t numbers = numbers_in_step<T>;

  // Where the vector v of a group goes, and how far apart its steps are: a panel with one vector is half as wide.
  struct Place {
    float* to;
    size_t stride;
  };
  Place place(float* to, size_t v, int64_t col, size_t steps) const {
    const size_t panel = v / 2;
    const bool single = columns_ - col - int64_t(panel * panel_width) <= int64_t(panel_lanes);
    return {to + panel * steps * panel_width + v % 2 * panel_lanes, single ? panel_lanes : panel_width};
  }

  // Columns of op(b) are rows of b: transposed on the way.
  void from_rows(float* to, int64_t col, int64_t k, int64_t depth) const {
    HWY_ALIGN T stage[panel_lanes * size_t(stage_depth + 16)];
    const int64_t width = b_.cols();
    for (size_t v = 0; v < group_vectors; ++v) {
      const int64_t first = col + int64_t(v * panel_lanes), rows = std::min(columns_ - first, int64_t(panel_lanes));
      if (rows <= 0) return;
      const Place at = place(to, v, col, steps(depth));
      for (int64_t done = 0; done < depth; done += stage_depth) {
        const int64_t part = std::min(stage_depth, depth - done), padded = int64_t(steps(part) * numbers);
        const bool direct = !b_.is_codes() && rows == int64_t(panel_lanes) && part == padded && size_t(width) % numbers == 0;
        const T* from = stage;
        int64_t stride = stage_depth + 16;
        if (direct)
          from = b_.dense.as<const T>() + first * width + k + done, stride = width;
        else
          fill_stage(stage, stride, b_, first, rows, int64_t(panel_lanes), k + done, part, padded);
        transpose_lanes(at.to + size_t(done) / numbers * at.stride, at.stride, reinterpret_cast<const float*>(from),
                        size_t(stride) / numbers, steps(part));
      }
    }
  }

  // Rows of op(b) are rows of b: a pair of rows is one step.
  void from_columns(float* to, int64_t col, int64_t k, int64_t depth) const {
    HWY_ALIGN T stage[stage_rows * group_width];
    const int64_t width = b_.cols(), cols = std::min(group_width, columns_ - col);
    for (int64_t done = 0; done < depth; done += stage_rows) {
      const int64_t part = std::min(stage_rows, depth - done), padded = int64_t(steps(part) * numbers);
      const bool direct = !b_.is_codes() && cols == group_width && part == padded;
      const T* from = stage;
      int64_t stride = group_width;
      prefetch(k + done + stage_rows, std::min(stage_rows, depth - done - stage_rows), col);
      if (direct)
        from = b_.dense.as<const T>() + (k + done) * width + col, stride = width;
      else
        fill_stage(stage, stride, b_, k + done, part, padded, col, cols, group_width);
      for (size_t v = 0; v < group_vectors && int64_t(v * panel_lanes) < cols; ++v) {
        const Place at = place(to, v, col, steps(depth));
        float* out = at.to + size_t(done) / numbers * at.stride;
        for (size_t s = 0; s < steps(part); ++s, out += at.stride)
          hn::Store(step_of_rows(from + int64_t(s * numbers) * stride + int64_t(v * panel_lanes), size_t(stride)), floats, out);
      }
    }
  }

  // Rows lie far apart: the processor does not guess the next ones.
  void prefetch(int64_t row, int64_t rows, int64_t col) const {
    const auto* bytes = b_.is_codes() ? b_.codes.codes.as<const char>() : b_.dense.as<const char>();
    for (int64_t r = row; r < row + rows; ++r) {
      const int64_t at = r * b_.cols() + col;
      const char* line = bytes + (b_.is_codes() ? at / 2 : at * int64_t(sizeof(T)));
      hwy::Prefetch(line);
      if (b_.is_codes()) continue;
      for (int64_t i = 64; i < group_width * int64_t(sizeof(T)); i += 64) hwy::Prefetch(line + i);
    }
  }

  const Factor& b_;
  bool transposed_;
  int64_t columns_;
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
