#include "nn/linear.h"

#include "core/rng.h"
#include "ops/elementwise.h"
#include "ops/gemm.h"
#include "quant/codebook4.h"

namespace tessera {
namespace {

Factor factor(const Weight& w) {
  if (const auto* dense = std::get_if<Dense>(&w.store)) return dense->weight.value;
  return codes_of(w);
}

bool drops(const Linear& l, const Context& ctx) { return l.adapter && ctx.training && l.adapter->dropout > 0; }

void apply_dropout(Tensor out, const Linear& l, Tensor x, const Context& ctx) {
  const uint64_t key = Rng(ctx.seed, Purpose::dropout, l.name, uint64_t(l.layer)).key();
  const Shape whole{ctx.B, ctx.T, x.cols()};
  dropout(out.reshaped(whole), x.reshaped(whole), ctx.row_keys, key, l.adapter->dropout);
}

// x, or dropout(x) in the arena.
Tensor adapter_input(const Linear& l, Tensor x, const Context& ctx) {
  if (!drops(l, ctx)) return x;
  const Tensor dropped = ctx.take(x.rows(), x.cols(), "adapter input");
  apply_dropout(dropped, l, x, ctx);
  return dropped;
}

// Gradients of A and B; returns dt (rows, r), the gradient of dropout(x) A^T.
Tensor adapter_backward(const LinearGradient& g, Tensor x, const Context& ctx) {
  const Adapter& adapter = *g.layer.adapter;
  const Tensor dt = ctx.take(g.dy.rows(), g.saved.t.cols(), "adapter gradient");
  gemm(dt, g.dy, Trans::no, adapter.b.value, Trans::no, adapter.scale);
  gemm(adapter.b.grad, g.dy, Trans::yes, g.saved.t, Trans::no, 1, true);
  const ArenaScope scope(ctx.arena);
  gemm(adapter.a.grad, dt, Trans::yes, adapter_input(g.layer, x, ctx), Trans::no, 1, true);
  return dt;
}

// dx += dropout(dt A): a mask of its own keeps this branch out of the sum of products.
void add_dropped_branch(Tensor dx, const Linear& l, Tensor dt, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  const Tensor branch = ctx.take(dx.rows(), dx.cols(), "adapter input gradient");
  gemm(branch, dt, Trans::no, l.adapter->a.value, Trans::no);
  apply_dropout(branch, l, branch, ctx);
  add(dx, dx, branch);
}

}  // namespace

LinearSaved take_saved(const Linear& l, int64_t rows, const Context& ctx) {
  if (!l.adapter) return {};
  return {ctx.take(rows, l.adapter->a.value.shape.rows(), "adapter activations")};
}

void linear_forward_adapter(const Linear& l, Tensor x, LinearSaved& saved, const Context& ctx) {
  if (!l.adapter) return;
  const ArenaScope scope(ctx.arena);
  gemm(saved.t, adapter_input(l, x, ctx), Trans::no, l.adapter->a.value, Trans::yes, l.adapter->scale);
}

void linear_forward(Tensor y, const Linear& l, Tensor x, LinearSaved* saved, const Context& ctx, Tensor addend) {
  const ArenaScope scope(ctx.arena);
  Product p;
  p.c = y, p.transpose_b = true, p.addend = addend;
  p.add(x, factor(l.weight));
  if (l.bias) p.bias = l.bias->value;
  if (l.adapter) {
    LinearSaved mine = saved ? *saved : take_saved(l, x.rows(), ctx);
    linear_forward_adapter(l, x, mine, ctx);
    p.add(mine.t, l.adapter->b.value);
  }
  gemm(p);
}

void linear_backward(Tensor dx, bool dx_accumulates, std::initializer_list<LinearGradient> gradients, Tensor x, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  Product p;
  p.c = dx, p.accumulate = dx_accumulates;
  Tensor dropped[4];
  int i = 0;
  for (const LinearGradient& g : gradients) {
    const Linear& l = g.layer;
    p.add(g.dy, factor(l.weight));
    if (const auto* dense = std::get_if<Dense>(&l.weight.store); dense && dense->weight.trains)
      gemm(dense->weight.grad, g.dy, Trans::yes, x, Trans::no, 1, true);
    if (l.bias && l.bias->trains) bias_backward(l.bias->grad, g.dy);
    const Tensor dt = l.adapter ? adapter_backward(g, x, ctx) : Tensor{};
    if (l.adapter && !drops(l, ctx)) p.add(dt, l.adapter->a.value);
    dropped[i++] = drops(l, ctx) ? dt : Tensor{};
  }
  if (dx.empty()) return;
  gemm(p);
  i = 0;
  for (const LinearGradient& g : gradients)
    if (const Tensor dt = dropped[i++]; !dt.empty()) add_dropped_branch(dx, g.layer, dt, ctx);
}

}  // namespace tessera
