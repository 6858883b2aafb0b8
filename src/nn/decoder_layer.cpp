#include "nn/decoder_layer.h"

#include <cassert>

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace tessera {
namespace {

Tensor heads(Tensor x, int64_t n, int64_t D, const Context& ctx) { return x.reshaped({ctx.B, ctx.T, n, D}); }

// Appends this call's keys or values to the cache and returns all of them, (1, length + T, K, D).
Tensor append(Tensor cache, Tensor fresh, int64_t length) {
  const Tensor rows = cache.reshaped({cache.shape.dim[1], cache.shape.dim[2] * cache.shape.dim[3]});
  const int64_t count = fresh.shape.dim[1];
  convert(rows.rows_from(length, count), fresh.reshaped({count, rows.cols()}));
  Tensor all = cache;
  all.shape.dim[1] = length + count;
  return all;
}

void attend(const DecoderLayer& l, DecoderSaved& s, const Context& ctx) {
  Tensor k = heads(s.k, l.K, l.D, ctx), v = heads(s.v, l.K, l.D, ctx);
  if (ctx.cache) k = append(ctx.cache->k, k, ctx.cache->length), v = append(ctx.cache->v, v, ctx.cache->length);
  attention(heads(s.a, l.H, l.D, ctx), s.lse, heads(s.q, l.H, l.D, ctx), k, v, ctx.starts, l.attention);
}

void queries_keys_values(const DecoderLayer& l, DecoderSaved& s, const Context& ctx) {
  rmsnorm(s.n1, s.rstd1, s.x, l.input_norm.value, l.eps);
  linear_forward({{s.q, l.q, &s.tq}, {s.k, l.k, &s.tk}, {s.v, l.v, &s.tv}}, s.n1, ctx);
  rope(heads(s.q, l.H, l.D, ctx), ctx.cos, ctx.sin, ctx.positions);
  rope(heads(s.k, l.K, l.D, ctx), ctx.cos, ctx.sin, ctx.positions);
}

void attention_half(const DecoderLayer& l, DecoderSaved& s, const Context& ctx) {
  queries_keys_values(l, s, ctx);
  attend(l, s, ctx);
  linear_forward({{s.h, l.o, &s.to, s.x}}, s.a, ctx);
}

void mlp_input(const DecoderLayer& l, DecoderSaved& s, const Context& ctx) {
  rmsnorm(s.n2, s.rstd2, s.h, l.post_norm.value, l.eps);
  linear_forward({{s.gate, l.gate, &s.tgate}, {s.up, l.up, &s.tup}}, s.n2, ctx);
  swiglu(s.s, s.gate, s.up);
}

// dh arrives in dx and is overwritten by the gradient of x.
void attention_half_backward(Tensor dx, const DecoderLayer& l, const DecoderSaved& s, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  const Tensor da = ctx.take(ctx.rows(), l.H * l.D, "attention gradient");
  linear_backward(da, false, {{l.o, dx, s.to}}, s.a, ctx);
  const Tensor dq = ctx.take(ctx.rows(), l.H * l.D, "query gradient"), dk = ctx.take(ctx.rows(), l.K * l.D, "key gradient"),
               dv = ctx.take(ctx.rows(), l.K * l.D, "value gradient");
  const auto q = [&](Tensor t) { return heads(t, l.H, l.D, ctx); };
  const auto k = [&](Tensor t) { return heads(t, l.K, l.D, ctx); };
  attention_backward(q(dq), k(dk), k(dv), q(da), q(s.a), s.lse, q(s.q), k(s.k), k(s.v), ctx.starts, l.attention);
  rope_backward(q(dq), ctx.cos, ctx.sin, ctx.positions);
  rope_backward(k(dk), ctx.cos, ctx.sin, ctx.positions);
  const Tensor dn = ctx.take(ctx.rows(), l.C, "norm gradient");
  linear_backward(dn, false, {{l.q, dq, s.tq}, {l.k, dk, s.tk}, {l.v, dv, s.tv}}, s.n1, ctx);
  rmsnorm_backward(dx, l.input_norm.grad, dn, s.x, l.input_norm.value, s.rstd1, true);
}

void mlp_half_backward(Tensor dx, const DecoderLayer& l, const DecoderSaved& s, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  const Tensor ds = ctx.take(ctx.rows(), l.F, "mlp gradient");
  linear_backward(ds, false, {{l.down, dx, s.tdown}}, s.s, ctx);
  const Tensor dgate = s.gate, dup = s.up;  // in their places: nothing else reads those
  swiglu_backward(dgate, dup, ds, s.gate, s.up);
  const Tensor dn = ctx.take(ctx.rows(), l.C, "norm gradient");
  linear_backward(dn, false, {{l.gate, dgate, s.tgate}, {l.up, dup, s.tup}}, s.n2, ctx);
  rmsnorm_backward(dx, l.post_norm.grad, dn, s.h, l.post_norm.value, s.rstd2, true);
}

}  // namespace

DecoderKept take_kept(const DecoderLayer& l, Tensor x, const Context& ctx) {
  const int64_t n = ctx.rows();
  return {x,
          ctx.take(n, l.H * l.D, "queries"),
          ctx.take(n, l.K * l.D, "keys"),
          ctx.take(n, l.K * l.D, "values"),
          ctx.take(n, l.H * l.D, "attention output"),
          ctx.arena.take(Dtype::f32, {ctx.B, l.H, ctx.T}, "attention sums"),
          ctx.take(n, l.C, "residual")};
}

DecoderSaved take_saved(const DecoderLayer& l, const DecoderKept& kept, const Context& ctx) {
  DecoderSaved s;
  const int64_t n = ctx.rows();
  const auto rstd = [&] { return ctx.arena.take(Dtype::f32, {n}, "norm scales"); };
  const DecoderKept k = kept.a.empty() ? take_kept(l, kept.x, ctx) : kept;
  s.x = k.x, s.q = k.q, s.k = k.k, s.v = k.v, s.a = k.a, s.lse = k.lse, s.h = k.h;
  s.n1 = ctx.take(n, l.C, "attention input"), s.rstd1 = rstd();
  s.n2 = ctx.take(n, l.C, "mlp input"), s.rstd2 = rstd();
  s.gate = ctx.take(n, l.F, "gate"), s.up = ctx.take(n, l.F, "up"), s.s = ctx.take(n, l.F, "swiglu");
  s.tq = take_saved(l.q, n, ctx), s.tk = take_saved(l.k, n, ctx), s.tv = take_saved(l.v, n, ctx), s.to = take_saved(l.o, n, ctx);
  s.tgate = take_saved(l.gate, n, ctx), s.tup = take_saved(l.up, n, ctx), s.tdown = take_saved(l.down, n, ctx);
  return s;
}

void decoder_forward(Tensor y, const DecoderLayer& l, DecoderSaved& s, const Context& ctx) {
  attention_half(l, s, ctx);
  mlp_input(l, s, ctx);
  linear_forward({{y, l.down, &s.tdown, s.h}}, s.s, ctx);
}

void decoder_recompute(const DecoderLayer& l, DecoderSaved& s, bool attention_kept, const Context& ctx) {
  if (attention_kept) {
    rmsnorm(s.n1, s.rstd1, s.x, l.input_norm.value, l.eps);
    linear_forward_adapters({{{}, l.q, &s.tq}, {{}, l.k, &s.tk}, {{}, l.v, &s.tv}}, s.n1, ctx);
    linear_forward_adapters({{{}, l.o, &s.to}}, s.a, ctx);
  } else {
    attention_half(l, s, ctx);
  }
  mlp_input(l, s, ctx);
  linear_forward_adapters({{{}, l.down, &s.tdown}}, s.s, ctx);
}

void decoder_backward(Tensor dx, const DecoderLayer& l, const DecoderSaved& s, const Context& ctx) {
  assert(!ctx.cache);
  mlp_half_backward(dx, l, s, ctx);
  attention_half_backward(dx, l, s, ctx);
}

}  // namespace tessera
