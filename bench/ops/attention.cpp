// Causal attention, forward and backward, whole rows and packed ones. FLOPs are those of the pairs of query and key that are seen: two
// products of D numbers per pair and head forward, five backward (the scores are formed again).
#include "ops/attention.h"

#include <cmath>

#include "bench/ops/bench.h"

namespace tessera {
namespace {

struct Heads {
  const char* name;
  int64_t B, T, H, K, D;
  int64_t document;  // packed: tokens of a document; T: one document
};

constexpr Heads shapes[] = {{"15m", 8, 256, 6, 6, 48, 256},
                            {"135m", 1, 512, 9, 3, 64, 512},
                            {"135m", 1, 4096, 9, 3, 64, 4096},
                            {"135m", 1, 8192, 9, 3, 64, 8192},
                            {"135m.packed512", 1, 4096, 9, 3, 64, 512},
                            {"1b", 1, 512, 32, 8, 64, 512}};

double seen_pairs(const Heads& s) {
  const double documents = double(s.T / s.document), d = double(s.document);
  return double(s.B * s.H) * documents * d * (d + 1) / 2;
}

std::string case_name(const char* what, Dtype dtype, const Heads& s) {
  return std::string(what) + "/" + short_name(dtype) + "/" + s.name + "/" + sizes({s.B, s.T, s.H, s.K, s.D});
}

struct Operands {
  Tensor out, lse, q, k, v, starts;
  AttentionShape shape;
};

Operands make(Memory& m, Dtype dtype, const Heads& s) {
  std::vector<int32_t> starts;
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t t = 0; t < s.T; ++t) starts.push_back(int32_t(t / s.document * s.document));
  Operands o;
  o.out = m.zeros(dtype, {s.B, s.T, s.H, s.D});
  o.lse = m.zeros(Dtype::f32, {s.B, s.H, s.T});
  o.q = m.random(dtype, {s.B, s.T, s.H, s.D});
  o.k = m.random(dtype, {s.B, s.T, s.K, s.D});
  o.v = m.random(dtype, {s.B, s.T, s.K, s.D});
  o.starts = m.of(starts, {s.B, s.T});
  o.shape.scale = float(1 / std::sqrt(double(s.D)));
  return o;
}

void add_shape(Bench& bench, Dtype dtype, const Heads& s) {
  const double flops_of_product = 2 * seen_pairs(s) * double(s.D);
  bench.add(case_name("attention", dtype, s), arithmetic(dtype, 2 * flops_of_product), [=](Memory& m) -> Call {
    const Operands o = make(m, dtype, s);
    return [=] { attention(o.out, o.lse, o.q, o.k, o.v, o.starts, o.shape); };
  });
  bench.add(case_name("attention_backward", dtype, s), arithmetic(dtype, 5 * flops_of_product), [=](Memory& m) -> Call {
    const Operands o = make(m, dtype, s);
    attention(o.out, o.lse, o.q, o.k, o.v, o.starts, o.shape);
    const Tensor dq = m.zeros(dtype, o.q.shape), dk = m.zeros(dtype, o.k.shape), dv = m.zeros(dtype, o.v.shape),
                 dout = m.random(dtype, o.out.shape);
    return [=] { attention_backward(dq, dk, dv, dout, o.out, o.lse, o.q, o.k, o.v, o.starts, o.shape); };
  });
}

// The last of so many tokens, as generate asks for it: keys and values are read.
void add_one_query(Bench& bench, const Heads& s, int64_t keys) {
  const double bytes = double(2 * s.B * keys * s.K * s.D) * 2;
  const std::string tail = std::string("/bf16/") + s.name + "/" + sizes({s.B, keys, s.H, s.K, s.D});
  bench.add("attention_one_query" + tail, reading(bytes), [=](Memory& m) -> Call {
    const Tensor q = m.random(Dtype::bf16, {s.B, 1, s.H, s.D}), k = m.random(Dtype::bf16, {s.B, keys, s.K, s.D}),
                 v = m.random(Dtype::bf16, k.shape), out = m.zeros(Dtype::bf16, q.shape), lse = m.zeros(Dtype::f32, {s.B, s.H, 1}),
                 starts = m.of({0}, {1, 1});
    return [=, scale = float(1 / std::sqrt(double(s.D)))] { attention(out, lse, q, k, v, starts, {scale}); };
  });
}

}  // namespace

void add_attention(Bench& bench) {
  for (const Heads& s : shapes) add_shape(bench, Dtype::bf16, s);
  add_shape(bench, Dtype::f32, shapes[1]);
  add_shape(bench, Dtype::f32, shapes[2]);
  for (const int64_t keys : {512, 4096}) {
    add_one_query(bench, shapes[1], keys);
    add_one_query(bench, shapes[5], keys);
  }
}

}  // namespace tessera
