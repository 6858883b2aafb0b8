// Gradient norm and clip coefficient (torch.nn.utils.clip_grad_norm_). The sum of squares is exact in its order: blocks of 64 elements are
// summed by the backend, the block sums are added as 128-bit integers of one common scale, so any cut into ranks gives the same bits.
// All of it happens where the sums are; a few kilobytes come to the host.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace tessera {

// Sums of squares, ready to be added up in any order. Two passes because the common scale needs the largest block sum of all ranks.
class SquareSum {
 public:
  // parts (p, 2) i64: working memory, of the device whose sums are added; more rows keep a larger device busy.
  explicit SquareSum(Tensor parts) : parts_(parts) {}
  void add(Tensor blocks) { blocks_.push_back(blocks); }  // of square_sums(); they stay as they are until the last total()
  double largest() const;  // block sum here; infinity when one is not finite, so a maximum over ranks tells all. The host waits
  // The total in units of 2^exponent, as two words. exponent = from the largest of all ranks.
  struct Total {
    int64_t high = 0;
    uint64_t low = 0;
  };
  static int exponent_for(double largest_of_all);
  Total total(int exponent) const;  // REQUIRES: largest() is finite. The host waits
  static Total sum(Total a, Total b);
  static double value(Total, int exponent);

 private:
  Tensor parts_;
  std::vector<Tensor> blocks_;
};

// min(1, max_norm / (norm + 1e-6)), in float as torch; 1 when max_norm <= 0 (transformers: no clipping).
float clip_coefficient(float norm, float max_norm);

}  // namespace tessera
