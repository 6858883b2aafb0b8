// What the tests of this room share: an arena, a context for (B, T) rows, layers with memory.
#pragma once
#include <vector>

#include "nn/context.h"
#include "nn/linear.h"
#include "testing/gradients.h"

namespace tessera {

struct NnTest {
  explicit NnTest(int threads = 1)
      : backend(make_backend("cpu", threads)), memory(*backend), arena(backend.get(), backend->allocate(size_t(256) << 20, "test arena")) {}

  // Positions count from 0 in each row; documents start at 0; half of head size D rotated by made-up angles.
  Context context(int64_t B, int64_t T, int64_t D, Dtype dtype = Dtype::f32) {
    Context ctx(arena);
    ctx.dtype = dtype, ctx.B = B, ctx.T = T;
    ctx.positions = memory.zeros(Dtype::i32, {B, T});
    ctx.starts = memory.zeros(Dtype::i32, {B, T});
    ctx.row_keys = memory.zeros(Dtype::i64, {B});
    for (int64_t i = 0; i < B * T; ++i) ctx.positions.as<int32_t>()[i] = int32_t(i % T);
    for (int64_t b = 0; b < B; ++b) ctx.row_keys.as<int64_t>()[b] = 100 + b;
    ctx.cos = memory.random(Dtype::f32, {T, D / 2}, 11);
    ctx.sin = memory.random(Dtype::f32, {T, D / 2}, 12);
    return ctx;
  }

  Param param(Shape shape, uint64_t seed, float scale, bool trains) {
    Param p;
    p.value = memory.random(Dtype::f32, shape, seed, scale);
    p.trains = trains;
    if (trains) p.grad = memory.zeros(Dtype::f32, shape);
    return p;
  }

  Linear linear(const char* name, int64_t out, int64_t in, uint64_t seed, bool trains, bool bias, int64_t rank, float dropout = 0) {
    Linear l;
    l.name = name;
    l.weight.out = out, l.weight.in = in;
    l.weight.store = Dense{param({out, in}, seed, 0.3f, trains)};
    if (bias) l.bias = param({out}, seed + 1, 0.3f, trains);
    if (rank) l.adapter = Adapter{param({rank, in}, seed + 2, 0.3f, true), param({out, rank}, seed + 3, 0.3f, true), 1.5f, dropout};
    return l;
  }

  std::unique_ptr<Backend> backend;
  TestMemory memory;
  Arena arena;
};

// The trainable arrays of anything with parts(): values and gradients in one order.
struct Trainable {
  std::vector<Tensor> values, gradients;
  template <class Layer>
  explicit Trainable(Layer& layer) {
    parts(layer, [&](const auto&, Param& p) {
      if (p.trains) values.push_back(p.value), gradients.push_back(p.grad);
    });
  }
  void zero() const {
    for (const Tensor& g : gradients) g.home->fill_zero(g);
  }
};

}  // namespace tessera
