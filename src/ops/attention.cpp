#include "ops/attention.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {
namespace {

constexpr const char* takes =
    "q, out (B, Tq, H, D); k, v (B, Tk, K, D), K divides H, Tq <= Tk (= Tk backward); one dtype, f32 or bf16; lse (B, H, Tq) f32; starts "
    "(B, Tq) i32; gradients as what they belong to";

bool like(Tensor a, Tensor b) { return a.dtype == b.dtype && a.shape == b.shape; }

bool fits(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  if (q.shape.rank != 4 || k.shape.rank != 4 || !computes_in(q.dtype) || k.dtype != q.dtype) return false;
  const auto [batch, queries, heads, width] = q.shape.dim;
  const auto [key_batch, keys, key_heads, key_width] = k.shape.dim;
  return like(out, q) && like(v, k) && key_batch == batch && queries <= keys && key_heads > 0 && heads % key_heads == 0 &&
         key_width == width && is_vector(lse, Dtype::f32, batch * heads * queries) && is_vector(starts, Dtype::i32, batch * queries) &&
         shape.window >= 0;
}

}  // namespace

void attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape shape) {
  require(fits(out, lse, q, k, v, starts, shape), "attention", takes, {out, lse, q, k, v, starts});
  if (q.size()) q.home->attention(out, lse, q, k, v, starts, shape);
}

void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts,
                        AttentionShape shape) {
  require(fits(out, lse, q, k, v, starts, shape) && q.shape.dim[1] == k.shape.dim[1] && like(dout, q) && like(dq, q) && like(dk, k) &&
              like(dv, k),
          "attention_backward", takes, {dq, dk, dv, dout, out, lse, q, k, v, starts});
  if (q.size()) q.home->attention_backward(dq, dk, dv, dout, out, lse, q, k, v, starts, shape);
}

}  // namespace tessera
