// Products whose right-hand matrix is 4-bit codes (qlora's frozen base), without and with an adapter's term beside it.
#include "bench/ops/bench.h"
#include "ops/gemm.h"

namespace tessera {
namespace {

struct Layer {
  const char* name;
  int64_t rows, out, in;
};

constexpr Layer layers[] = {{"135m.attention", 512, 576, 576}, {"135m.kv", 512, 192, 576},   {"135m.up", 512, 1536, 576},
                            {"135m.down", 512, 576, 1536},     {"135m.up", 2048, 1536, 576}, {"1b.attention", 256, 2048, 2048},
                            {"1b.up", 256, 8192, 2048},        {"1b.down", 256, 2048, 8192}};
constexpr int64_t adapter_rank = 8;

std::string case_name(const char* what, Dtype dtype, const Layer& l) {
  return std::string("gemm_codes/") + what + "/" + short_name(dtype) + "/" + l.name + "/" + sizes({l.rows, l.out, l.in});
}

// forward: c (rows, out) = x W^T [+ t B^T]; backward: c (rows, in) = dy W [+ dt A].
void add_case(Bench& bench, Dtype dtype, const Layer& l, bool forward, bool adapter) {
  const int64_t n = forward ? l.out : l.in, k = forward ? l.in : l.out, r = adapter_rank;
  const std::string what = std::string(forward ? "forward" : "backward") + (adapter ? "_adapter" : "");
  bench.add(case_name(what.c_str(), dtype, l), product(dtype, l.rows, n, k + (adapter ? r : 0)), [=](Memory& m) -> Call {
    Product p;
    p.c = m.zeros(dtype, {l.rows, n});
    p.transpose_b = forward;
    p.add(m.random(dtype, {l.rows, k}), m.codes(l.out, l.in));
    if (adapter) p.add(m.random(dtype, {l.rows, r}), forward ? m.random(dtype, {n, r}) : m.random(dtype, {r, n}));
    return [=] { gemm(p); };
  });
}

}  // namespace

void add_gemm_codes(Bench& bench) {
  for (const Layer& l : layers)
    for (const bool forward : {true, false})
      for (const bool adapter : {false, true}) add_case(bench, Dtype::bf16, l, forward, adapter);
  for (const bool forward : {true, false}) add_case(bench, Dtype::f32, layers[2], forward, false);
}

}  // namespace tessera
