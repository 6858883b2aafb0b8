#include "nn/linear.h"

#include <algorithm>
#include <span>

#include "core/rng.h"
#include "ops/adapters.h"
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

// What the adapters of layers with one input do with it.
struct Adapters {
  AdapterProduct products[AdapterProduct::most];
  size_t count = 0;

  void add(const Linear& l, Tensor t, const Context& ctx) {
    const Adapter& adapter = *l.adapter;
    AdapterProduct& p = products[count++] = {t, adapter.a.value, adapter.a.grad, adapter.scale, {}};
    if (drops(l, ctx)) p.drop = {ctx.row_keys, Rng(ctx.seed, Purpose::dropout, l.name, uint64_t(l.layer)).key(), adapter.dropout};
  }
  std::span<const AdapterProduct> all() const { return {products, count}; }
  // Room for what dropout leaves of x, where it is needed.
  Tensor room(Tensor x, const Context& ctx) const {
    const bool drop = std::any_of(products, products + count, [](const AdapterProduct& p) { return p.drop.p > 0; });
    return drop && !drops_inside(all()) ? ctx.take(x.rows(), x.cols(), "adapter input") : Tensor{};
  }
};

// Gradients of B; returns dt (rows, r), the gradient of dropout(x) A^T.
Tensor adapter_gradient(const LinearGradient& g, const Context& ctx) {
  const Adapter& adapter = *g.layer.adapter;
  const Tensor dt = ctx.take(g.dy.rows(), g.saved.t.cols(), "adapter gradient");
  gemm(dt, g.dy, Trans::no, adapter.b.value, Trans::no, adapter.scale);
  gemm(adapter.b.grad, g.dy, Trans::yes, g.saved.t, Trans::no, 1, true);
  return dt;
}

}  // namespace

LinearSaved take_saved(const Linear& l, int64_t rows, const Context& ctx) {
  if (!l.adapter) return {};
  return {ctx.take(rows, l.adapter->a.value.shape.rows(), "adapter activations")};
}

void linear_forward_adapters(std::initializer_list<LinearCall> calls, Tensor x, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  Adapters shared;
  for (const LinearCall& call : calls)
    if (call.layer.adapter) shared.add(call.layer, call.saved->t, ctx);
  adapters(shared.all(), x, shared.room(x, ctx));
}

void linear_forward(std::initializer_list<LinearCall> calls, Tensor x, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  LinearSaved mine[AdapterProduct::most];
  Adapters shared;
  size_t i = 0;
  for (const LinearCall& call : calls) {
    LinearSaved& saved = mine[i++] = call.saved ? *call.saved : take_saved(call.layer, x.rows(), ctx);
    if (call.layer.adapter) shared.add(call.layer, saved.t, ctx);
  }
  {
    const ArenaScope input(ctx.arena);
    adapters(shared.all(), x, shared.room(x, ctx));
  }
  i = 0;
  for (const LinearCall& call : calls) {
    const Linear& l = call.layer;
    Product p;
    p.c = call.y, p.transpose_b = true, p.addend = call.addend;
    p.add(x, factor(l.weight));
    if (l.bias) p.bias = l.bias->value;
    if (l.adapter) p.add(mine[i].t, l.adapter->b.value);
    gemm(p);
    ++i;
  }
}

void linear_backward(Tensor dx, bool dx_accumulates, std::initializer_list<LinearGradient> gradients, Tensor x, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  Product p;
  p.c = dx, p.accumulate = dx_accumulates;
  Adapters shared, dropped;  // a mask of its own keeps a branch out of the sum of products
  for (const LinearGradient& g : gradients) {
    const Linear& l = g.layer;
    p.add(g.dy, factor(l.weight));
    if (const auto* dense = std::get_if<Dense>(&l.weight.store); dense && dense->weight.trains)
      gemm(dense->weight.grad, g.dy, Trans::yes, x, Trans::no, 1, true);
    if (l.bias && l.bias->trains) bias_backward(l.bias->grad, g.dy);
    if (!l.adapter) continue;
    const Tensor dt = adapter_gradient(g, ctx);
    shared.add(l, dt, ctx);
    if (drops(l, ctx)) {
      dropped.add(l, dt, ctx);
    } else {
      p.add(dt, l.adapter->a.value);
    }
  }
  {
    const ArenaScope input(ctx.arena);
    adapters_backward(shared.all(), x, shared.room(x, ctx));
  }
  if (dx.empty()) return;
  gemm(p);
  adapters_input_gradient(dx, dropped.all(), dropped.room(x, ctx));
}

}  // namespace tessera
