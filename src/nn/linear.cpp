#include "nn/linear.h"

#include "core/rng.h"
#include "ops/elementwise.h"
#include "ops/gemm.h"
#include "quant/codebook4.h"

namespace tessera {
namespace {

// The dense matrix (out, in) in compute dtype: the stored one, or one decoded into the arena (the caller rewinds).
Tensor dense_weight(const Weight& w, const Context& ctx) {
  if (const auto* dense = std::get_if<Dense>(&w.store)) return dense->weight.value;
  const auto& codes = std::get<Codebook4>(w.store);
  const Tensor out = ctx.arena.take(ctx.dtype, {w.out, w.in}, "decoded weight");
  decode(out, codes, ctx.arena.take(Dtype::f32, {(w.out * w.in + block4 - 1) / block4}, "decoded scales"));
  return out;
}

bool drops(const Linear& l, const Context& ctx) { return ctx.training && l.adapter->dropout > 0; }

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

void adapter_backward(Tensor dx, const Linear& l, Tensor dy, Tensor x, Tensor t, const Context& ctx) {
  const Adapter& adapter = *l.adapter;
  const Tensor dt = ctx.take(dy.rows(), t.cols(), "adapter gradient");
  gemm(dt, dy, Trans::no, adapter.b.value, Trans::no, adapter.scale);
  gemm(adapter.b.grad, dy, Trans::yes, t, Trans::no, adapter.scale, true);
  gemm(adapter.a.grad, dt, Trans::yes, adapter_input(l, x, ctx), Trans::no, 1, true);
  if (dx.empty()) return;
  if (!drops(l, ctx)) {
    gemm(dx, dt, Trans::no, adapter.a.value, Trans::no, 1, true);
    return;
  }
  const Tensor branch = ctx.take(dx.rows(), dx.cols(), "adapter input gradient");
  gemm(branch, dt, Trans::no, adapter.a.value, Trans::no);
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
  gemm(saved.t, adapter_input(l, x, ctx), Trans::no, l.adapter->a.value, Trans::yes);
}

void linear_forward(Tensor y, const Linear& l, Tensor x, LinearSaved* saved, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  gemm(y, x, Trans::no, dense_weight(l.weight, ctx), Trans::yes);
  if (l.bias) add_bias(y, l.bias->value);
  if (!l.adapter) return;
  LinearSaved mine = saved ? *saved : take_saved(l, x.rows(), ctx);
  linear_forward_adapter(l, x, mine, ctx);
  gemm(y, mine.t, Trans::no, l.adapter->b.value, Trans::yes, l.adapter->scale, true);
}

void linear_backward(Tensor dx, bool dx_accumulates, const Linear& l, Tensor dy, Tensor x, const LinearSaved& saved, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  if (!dx.empty()) {
    const ArenaScope weight_scope(ctx.arena);
    gemm(dx, dy, Trans::no, dense_weight(l.weight, ctx), Trans::no, 1, dx_accumulates);
  }
  if (const auto* dense = std::get_if<Dense>(&l.weight.store); dense && dense->weight.trains)
    gemm(dense->weight.grad, dy, Trans::yes, x, Trans::no, 1, true);
  if (l.bias && l.bias->trains) bias_backward(l.bias->grad, dy);
  if (l.adapter) adapter_backward(dx, l, dy, x, saved.t, ctx);
}

}  // namespace tessera
