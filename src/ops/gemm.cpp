#include "ops/gemm.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

namespace {
void check_term(const Product& p, const Term& t) {
  const int64_t m = p.transpose_a ? t.a.cols() : t.a.rows(), k = p.transpose_a ? t.a.rows() : t.a.cols();
  const int64_t inner = p.transpose_b ? t.b.cols() : t.b.rows(), n = p.transpose_b ? t.b.rows() : t.b.cols();
  const bool one_dtype = t.b.is_codes() || t.b.dense.dtype == t.a.dtype;
  require(p.c.rows() == m && p.c.cols() == n && inner == k && computes_in(t.a.dtype) && one_dtype &&
              (p.c.dtype == t.a.dtype || p.c.dtype == Dtype::f32),
          "gemm", "c (m, n), op(a) (m, k), op(b) (k, n), in this order; a and b both f32 or both bf16, c the same or f32",
          {p.c, t.a, t.b.dense});
}
}  // namespace

void gemm(const Product& p) {
  for (int i = 0; i < p.terms; ++i) check_term(p, p.term[i]);
  p.c.home->gemm(p);
}

void gemm(Tensor c, Tensor a, Trans ta, Tensor b, Trans tb, float alpha, bool accumulate) {
  Product p;
  p.c = c;
  p.transpose_a = ta == Trans::yes, p.transpose_b = tb == Trans::yes;
  p.alpha = alpha, p.accumulate = accumulate;
  p.add(a, b);
  gemm(p);
}

}  // namespace tessera
