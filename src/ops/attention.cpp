#include "ops/attention.h"

#include <cassert>

#include "backend/backend.h"

namespace tessera {
namespace {

[[maybe_unused]] bool shapes_fit(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts) {
  const auto& d = q.shape.dim;  // B, Tq, H, D
  const auto& e = k.shape.dim;  // B, Tk, K, D
  return q.shape.rank == 4 && k.shape.rank == 4 && out.shape == q.shape && v.shape == k.shape && d[0] == e[0] && d[1] <= e[1] &&
         d[2] % e[2] == 0 && d[3] == e[3] && lse.shape == Shape{d[0], d[2], d[1]} && starts.shape == Shape{d[0], d[1]};
}

[[maybe_unused]] bool dtypes_fit(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts) {
  return out.dtype == q.dtype && k.dtype == q.dtype && v.dtype == q.dtype && lse.dtype == Dtype::f32 && starts.dtype == Dtype::i32;
}

}  // namespace

void attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  assert(shapes_fit(out, lse, q, k, v, starts));
  assert(dtypes_fit(out, lse, q, k, v, starts));
  assert(shape.window >= 0);
  if (q.size()) q.home->attention(out, lse, q, k, v, starts, shape);
}

void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts,
                        AttentionShape shape) {
  assert(shapes_fit(out, lse, q, k, v, starts) && shapes_fit(dout, lse, dq, dk, dv, starts) && dq.shape == q.shape && dk.shape == k.shape);
  assert(dtypes_fit(out, lse, q, k, v, starts) && dtypes_fit(dout, lse, dq, dk, dv, starts) && dq.dtype == q.dtype);
  assert(q.shape == Shape({q.shape.dim[0], k.shape.dim[1], q.shape.dim[2], q.shape.dim[3]}));
  if (q.size()) q.home->attention_backward(dq, dk, dv, dout, out, lse, q, k, v, starts, shape);
}

}  // namespace tessera
