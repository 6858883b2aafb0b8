// Gradient norm and clip coefficient (torch.nn.utils.clip_grad_norm_). The sum of squares is exact in its order: blocks of 64 elements are
// summed by the backend, the block sums are added as 128-bit integers of one common scale, so any cut into ranks gives the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

// Sums of squares, ready to be added up in any order. Two passes because the common scale needs the largest block sum of all ranks.
class SquareSum {
 public:
  void add(std::span<const double> blocks);    // of square_sums(), in host memory; they stay where they are until the last total()
  double largest() const { return largest_; }  // block sum here; infinity when one is not finite, so a maximum over ranks tells all
  // The total in units of 2^exponent, as two words. exponent = from the largest of all ranks.
  struct Total {
    int64_t high = 0;
    uint64_t low = 0;
  };
  static int exponent_for(double largest_of_all);
  Total total(int exponent) const;
  static Total sum(Total a, Total b);
  static double value(Total, int exponent);
  bool finite() const { return std::isfinite(largest_); }

 private:
  std::vector<std::span<const double>> blocks_;
  double largest_ = 0;
};

// min(1, max_norm / (norm + 1e-6)), in float as torch; 1 when max_norm <= 0 (transformers: no clipping).
float clip_coefficient(float norm, float max_norm);

}  // namespace tessera
