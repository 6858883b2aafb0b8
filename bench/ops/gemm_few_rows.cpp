// One row times a matrix: a new token in generation. The limit is how fast weights are read, so each call takes the next of several
// matrices that together are far larger than the caches.
#include "bench/ops/bench.h"
#include "ops/gemm.h"

namespace tessera {
namespace {

struct Layer {
  const char* name;
  int64_t out, in;
};

constexpr Layer layers[] = {{"135m.up", 1536, 576}, {"1b.attention", 2048, 2048}, {"1b.up", 8192, 2048}, {"1b.down", 2048, 8192}};
constexpr int64_t all_bytes = int64_t(256) << 20;

std::string case_name(const char* what, int64_t rows, const Layer& l) {
  return std::string("gemm_few_rows/") + what + "/" + l.name + "/" + sizes({rows, l.out, l.in});
}

void add_case(Bench& bench, int64_t rows, const Layer& l, Dtype dtype, bool as_codes) {
  const double bytes = double(l.out * l.in) * (as_codes ? 0.5 + 1.0 / 64 : double(size_of(dtype)));
  Work work = reading(bytes);
  work.working_set = size_t(all_bytes);
  bench.add(case_name(as_codes ? "codes" : short_name(dtype), rows, l), work, [=](Memory& m) -> Call {
    std::vector<Product> products(size_t(double(all_bytes) / bytes));
    for (Product& p : products) {
      p.c = m.zeros(dtype, {rows, l.out});
      p.transpose_b = true;
      p.add(m.random(dtype, {rows, l.in}), as_codes ? Factor(m.codes(l.out, l.in)) : Factor(m.random(dtype, {l.out, l.in})));
    }
    return [products, i = size_t(0)]() mutable { gemm(products[i++ % products.size()]); };
  });
}

}  // namespace

void add_gemm_few_rows(Bench& bench) {
  for (const Layer& l : layers) {
    add_case(bench, 1, l, Dtype::bf16, false);
    add_case(bench, 1, l, Dtype::bf16, true);
  }
  add_case(bench, 1, layers[2], Dtype::f32, false);
  add_case(bench, 4, layers[2], Dtype::bf16, false);
  add_case(bench, 4, layers[2], Dtype::bf16, true);
}

}  // namespace tessera
