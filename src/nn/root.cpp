#include "nn/root.h"

#include <algorithm>
#include <cstring>

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

Tensor host_ids(const std::vector<int32_t>& ids, const Context& ctx) {
  const Tensor t = ctx.arena.take(Dtype::i32, {int64_t(ids.size())}, "row numbers");
  std::memcpy(t.data, ids.data(), ids.size() * sizeof(int32_t));
  return t;
}

// The listed rows of x, and their norm.
struct HeadInput {
  Tensor x, normed, rstd;
};
HeadInput head_input(const Root& root, Tensor x, Tensor index, const Context& ctx) {
  HeadInput in{ctx.take(index.size(), root.C, "head rows"), ctx.take(index.size(), root.C, "head input"),
               ctx.arena.take(Dtype::f32, {index.size()}, "norm scales")};
  gather_rows(in.x, x, index);
  rmsnorm(in.normed, in.rstd, in.x, root.norm.value, root.eps);
  return in;
}

double sum_of_rows(Tensor loss) {
  double sum = 0;
  for (int64_t i = 0; i < loss.size(); ++i) sum += loss.as<float>()[i];
  return sum;
}

// Logits, loss and (scale != 0) their gradient, chunk by chunk; dnormed (rows, C) is filled when given.
double chunked_loss(const Root& root, Tensor normed, Tensor labels, Tensor dnormed, float scale, const Context& ctx) {
  const Param& head = head_of(root);
  double sum = 0;
  const int64_t chunk = chunk_rows(normed.rows(), root.V, ctx.dtype);
  for (int64_t begin = 0; begin < normed.rows(); begin += chunk) {
    const ArenaScope scope(ctx.arena);
    const int64_t n = std::min(chunk, normed.rows() - begin);
    const Tensor x = normed.rows_from(begin, n);
    const Tensor logits = ctx.take(n, root.V, "logits");
    gemm(logits, x, Trans::no, head.value, Trans::yes);
    const Tensor loss = ctx.arena.take(Dtype::f32, {n}, "row losses");
    const Tensor dlogits = dnormed.empty() ? Tensor{} : logits;
    cross_entropy(loss, dlogits, logits, labels.reshaped({labels.size(), 1}).rows_from(begin, n).reshaped({n}), scale);
    sum += sum_of_rows(loss);
    if (dnormed.empty()) continue;
    gemm(dnormed.rows_from(begin, n), dlogits, Trans::no, head.value, Trans::no);
    if (head.trains) gemm(head.grad, dlogits, Trans::yes, x, Trans::no, 1, true);
  }
  return sum;
}

}  // namespace

void root_embed(Tensor x, const Root& root, Tensor ids) {
  embedding(x.reshaped({ids.shape.dim[0], ids.shape.dim[1], root.C}), root.embed.value, ids);
}

void root_embed_backward(const Root& root, Tensor dx, Tensor ids) {
  if (root.embed.trains) embedding_backward(root.embed.grad, dx.reshaped({ids.shape.dim[0], ids.shape.dim[1], root.C}), ids);
}

double root_loss(const Root& root, Tensor x, const std::vector<int32_t>& targets, Tensor dx, float scale, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  std::vector<int32_t> index, labels;
  for (size_t i = 0; i < targets.size(); ++i)
    if (targets[i] >= 0) index.push_back(int32_t(i)), labels.push_back(targets[i]);
  if (index.empty()) {
    if (!dx.empty()) fill_zero(dx);
    return 0;
  }
  const Tensor rows = host_ids(index, ctx);
  const HeadInput in = head_input(root, x, rows, ctx);
  const Tensor dnormed = dx.empty() ? Tensor{} : ctx.take(in.x.rows(), root.C, "head gradient");
  const double sum = chunked_loss(root, in.normed, host_ids(labels, ctx), dnormed, dx.empty() ? 0 : scale, ctx);
  if (dx.empty()) return sum;
  const Tensor drows = ctx.take(in.x.rows(), root.C, "head row gradient");
  rmsnorm_backward(drows, root.norm.grad, dnormed, in.x, root.norm.value, in.rstd);
  scatter_rows(dx, drows, rows);
  return sum;
}

void root_logits(Tensor logits, const Root& root, Tensor x, const std::vector<int32_t>& index, const Context& ctx) {
  const ArenaScope scope(ctx.arena);
  const HeadInput in = head_input(root, x, host_ids(index, ctx), ctx);
  gemm(logits, in.normed, Trans::no, head_of(root).value, Trans::yes);
}

}  // namespace tessera
