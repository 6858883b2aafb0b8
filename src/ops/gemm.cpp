#include "ops/gemm.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

void gemm(Tensor c, Tensor a, Trans ta, Tensor b, Trans tb, float alpha, bool accumulate) {
  const bool flip_a = ta == Trans::yes, flip_b = tb == Trans::yes;
  const int64_t m = flip_a ? a.cols() : a.rows(), k = flip_a ? a.rows() : a.cols();
  const int64_t inner = flip_b ? b.cols() : b.rows(), n = flip_b ? b.rows() : b.cols();
  require(c.rows() == m && c.cols() == n && inner == k && computes_in(a.dtype) && a.dtype == b.dtype &&
              (c.dtype == a.dtype || c.dtype == Dtype::f32),
          "gemm", "c (m, n), op(a) (m, k), op(b) (k, n), in this order; a and b both f32 or both bf16, c the same or f32", {c, a, b});
  c.home->gemm(c, a, flip_a, b, flip_b, alpha, accumulate);
}

}  // namespace tessera
