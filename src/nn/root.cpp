#include "nn/root.h"

#include <algorithm>
#include <cassert>

#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/gemm.h"
#include "ops/rmsnorm.h"

namespace tessera {
namespace {

// Rows of logits formed at once, of `rows`: even parts of at most 64 MiB, at least 64 rows. By shapes alone, so sums have one order.
int64_t chunk_rows(int64_t rows, int64_t V, Dtype dtype) {
  const int64_t most = std::max<int64_t>(64, (int64_t(64) << 20) / (V * int64_t(size_of(dtype))));
  const int64_t parts = (rows + most - 1) / most, even = (rows + parts - 1) / parts;
  return (even + 7) / 8 * 8;
}

const Param& head_of(const Root& root) { return root.head ? *root.head : root.embed; }

// The listed rows of x, and their norm.
struct HeadInput {
  Tensor x, normed, rstd;
};
HeadInput head_input(const Root& root, Tensor x, Tensor rows, const Context& ctx) {
  HeadInput in{ctx.take(rows.size(), root.C, "head rows"), ctx.take(rows.size(), root.C, "head input"),
               ctx.arena.take(Dtype::f32, {rows.size()}, "norm scales")};
  gather_rows(in.x, x, rows);
  rmsnorm(in.normed, in.rstd, in.x, root.norm.value, root.eps);
  return in;
}

Tensor part_of(Tensor list, int64_t begin, int64_t count) {
  return list.reshaped({list.size(), 1}).rows_from(begin, count).reshaped({count});
}

// Logits, losses and (scale != 0) their gradient, chunk by chunk; dnormed (rows, C) is filled when given.
void chunked_loss(Tensor losses, const Root& root, Tensor normed, Tensor labels, Tensor dnormed, float scale, const Context& ctx) {
  const Param& head = head_of(root);
  const int64_t chunk = chunk_rows(normed.rows(), root.V, ctx.dtype);
  for (int64_t begin = 0; begin < normed.rows(); begin += chunk) {
    const ArenaScope scope(ctx.arena);
    const int64_t n = std::min(chunk, normed.rows() - begin);
    const Tensor x = normed.rows_from(begin, n);
    const Tensor logits = ctx.take(n, root.V, "logits");
    gemm(logits, x, Trans::no, head.value, Trans::yes);
    const Tensor dlogits = dnormed.empty() ? Tensor{} : logits;
    cross_entropy(part_of(losses, begin, n), dlogits, logits, part_of(labels, begin, n), scale);
    if (dnormed.empty()) continue;
    gemm(dnormed.rows_from(begin, n), dlogits, Trans::no, head.value, Trans::no);
    if (head.trains) gemm(head.grad, dlogits, Trans::yes, x, Trans::no, 1, true);
  }
}

}  // namespace

void root_embed(Tensor x, const Root& root, Tensor ids) {
  embedding(x.reshaped({ids.shape.dim[0], ids.shape.dim[1], root.C}), root.embed.value, ids);
}

void root_embed_backward(const Root& root, Tensor dx, Tensor ids) {
  if (root.embed.trains) embedding_backward(root.embed.grad, dx.reshaped({ids.shape.dim[0], ids.shape.dim[1], root.C}), ids);
}

void root_loss(Tensor losses, const Root& root, Tensor x, const Targets& targets, Tensor dx, float scale, const Context& ctx) {
  assert(losses.size() == targets.rows.size() && losses.size() == targets.labels.size());
  if (losses.size() == 0) {
    if (!dx.empty()) fill_zero(dx);
    return;
  }
  const ArenaScope scope(ctx.arena);
  const HeadInput in = head_input(root, x, targets.rows, ctx);
  const Tensor dnormed = dx.empty() ? Tensor{} : ctx.take(in.x.rows(), root.C, "head gradient");
  chunked_loss(losses, root, in.normed, targets.labels, dnormed, dx.empty() ? 0 : scale, ctx);
  if (dx.empty()) return;
  const Tensor drows = ctx.take(in.x.rows(), root.C, "head row gradient");
  rmsnorm_backward(drows, root.norm.grad, dnormed, in.x, root.norm.value, in.rstd);
  scatter_rows(dx, drows, targets.rows);
}

void root_logits(Tensor logits, const Root& root, Tensor x, Tensor rows, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  const HeadInput in = head_input(root, x, rows, ctx);
  gemm(logits, in.normed, Trans::no, head_of(root).value, Trans::yes);
}

}  // namespace tessera
