#include "ops/rope.h"

#include "bench/ops/bench.h"

namespace tessera {
namespace {

void add_shape(Bench& bench, Dtype dtype, int64_t T, int64_t H, int64_t D) {
  const double bytes = double(T * H * D) * double(size_of(dtype));
  bench.add(std::string("rope/") + short_name(dtype) + "/" + sizes({T, H, D}), updating(bytes, bytes), [=](Memory& m) -> Call {
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < T; ++t) positions.push_back(int32_t(t));
    // The angle does not matter to the time; a half keeps the numbers from growing.
    const Tensor x = m.random(dtype, {1, T, H, D}), cos = m.random(Dtype::f32, {T, D / 2}, 0.5f),
                 sin = m.random(Dtype::f32, {T, D / 2}, 0.5f), at = m.of(positions, {1, T});
    return [=] { rope(x, cos, sin, at); };
  });
}

}  // namespace

void add_rope(Bench& bench) {
  add_shape(bench, Dtype::bf16, 512, 9, 64);
  add_shape(bench, Dtype::bf16, 4096, 9, 64);
  add_shape(bench, Dtype::bf16, 512, 32, 64);
  add_shape(bench, Dtype::f32, 512, 9, 64);
}

}  // namespace tessera
