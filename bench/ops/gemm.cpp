// Products of a training step with dense weights: forward (x W^T), input gradient (dy W), weight gradient (dy^T x, onto f32), and those of
// an adapter of rank 8: alone, and as the second term of its layer.
#include "ops/gemm.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

struct Layer {
  const char* name;
  int64_t rows, out, in;
};

constexpr Layer layers[] = {{"15m.mlp", 2048, 768, 288},       {"135m.attention", 512, 576, 576}, {"135m.kv", 512, 192, 576},
                            {"135m.up", 512, 1536, 576},       {"135m.down", 512, 576, 1536},     {"135m.head", 170, 49152, 576},
                            {"1b.attention", 256, 2048, 2048}, {"1b.up", 256, 8192, 2048},        {"1b.down", 256, 2048, 8192}};
constexpr int64_t adapter_rank = 8;

std::string case_name(const char* what, Dtype dtype, const Layer& l) {
  return std::string("gemm/") + what + "/" + short_name(dtype) + "/" + l.name + "/" + sizes({l.rows, l.out, l.in});
}

void add_dense(Bench& bench, Dtype dtype, const Layer& l) {
  const Work work = product(dtype, l.rows, l.out, l.in);
  bench.add(case_name("forward", dtype, l), work, [=](Memory& m) -> Call {
    const Tensor y = m.zeros(dtype, {l.rows, l.out}), x = m.random(dtype, {l.rows, l.in}), w = m.random(dtype, {l.out, l.in});
    return [=] { gemm(y, x, Trans::no, w, Trans::yes); };
  });
  bench.add(case_name("backward", dtype, l), work, [=](Memory& m) -> Call {
    const Tensor dx = m.zeros(dtype, {l.rows, l.in}), dy = m.random(dtype, {l.rows, l.out}), w = m.random(dtype, {l.out, l.in});
    return [=] { gemm(dx, dy, Trans::no, w, Trans::no); };
  });
  bench.add(case_name("weight_gradient", dtype, l), work, [=](Memory& m) -> Call {
    const Tensor dw = m.zeros(Dtype::f32, {l.out, l.in}), dy = m.random(dtype, {l.rows, l.out}), x = m.random(dtype, {l.rows, l.in});
    return [=] { gemm(dw, dy, Trans::yes, x, Trans::no, 1, true); };
  });
}

void add_adapter(Bench& bench, Dtype dtype, const Layer& l) {
  const int64_t r = adapter_rank;
  bench.add(case_name("adapter_in", dtype, l), product(dtype, l.rows, r, l.in), [=](Memory& m) -> Call {
    const Tensor t = m.zeros(dtype, {l.rows, r}), x = m.random(dtype, {l.rows, l.in}), a = m.random(dtype, {r, l.in});
    return [=] { gemm(t, x, Trans::no, a, Trans::yes); };
  });
  bench.add(case_name("adapter_back", dtype, l), product(dtype, l.rows, r, l.out), [=](Memory& m) -> Call {
    const Tensor dt = m.zeros(dtype, {l.rows, r}), dy = m.random(dtype, {l.rows, l.out}), b = m.random(dtype, {l.out, r});
    return [=] { gemm(dt, dy, Trans::no, b, Trans::no); };
  });
  bench.add(case_name("gradient_a", dtype, l), product(dtype, r, l.in, l.rows), [=](Memory& m) -> Call {
    const Tensor da = m.zeros(Dtype::f32, {r, l.in}), dt = m.random(dtype, {l.rows, r}), x = m.random(dtype, {l.rows, l.in});
    return [=] { gemm(da, dt, Trans::yes, x, Trans::no, 1, true); };
  });
  bench.add(case_name("gradient_b", dtype, l), product(dtype, l.out, r, l.rows), [=](Memory& m) -> Call {
    const Tensor db = m.zeros(Dtype::f32, {l.out, r}), dy = m.random(dtype, {l.rows, l.out}), t = m.random(dtype, {l.rows, r});
    return [=] { gemm(db, dy, Trans::yes, t, Trans::no, 1, true); };
  });
}

// y = x W^T + t B^T and dx = dy W + dt A, each one product of two terms.
void add_two_terms(Bench& bench, Dtype dtype, const Layer& l) {
  const int64_t r = adapter_rank;
  bench.add(case_name("forward_adapter", dtype, l), product(dtype, l.rows, l.out, l.in + r), [=](Memory& m) -> Call {
    Product p;
    p.c = m.zeros(dtype, {l.rows, l.out});
    p.transpose_b = true;
    p.add(m.random(dtype, {l.rows, l.in}), m.random(dtype, {l.out, l.in}));
    p.add(m.random(dtype, {l.rows, r}), m.random(dtype, {l.out, r}));
    return [=] { gemm(p); };
  });
  bench.add(case_name("backward_adapter", dtype, l), product(dtype, l.rows, l.in, l.out + r), [=](Memory& m) -> Call {
    Product p;
    p.c = m.zeros(dtype, {l.rows, l.in});
    p.add(m.random(dtype, {l.rows, l.out}), m.random(dtype, {l.out, l.in}));
    p.add(m.random(dtype, {l.rows, r}), m.random(dtype, {r, l.in}));
    return [=] { gemm(p); };
  });
}

}  // namespace

void add_gemm(Bench& bench) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f32})
    for (const Layer& l : layers) add_dense(bench, dtype, l);
  for (const Layer& l : {layers[3], layers[4], layers[7], layers[8]}) {
    add_adapter(bench, Dtype::bf16, l);
    add_two_terms(bench, Dtype::bf16, l);
  }
}

}  // namespace tessera
