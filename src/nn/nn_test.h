// What the tests of this room share: an arena, a context for (B, T) rows, layers with memory; cases on every device.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "nn/context.h"
#include "nn/linear.h"
#include "testing/gradients.h"
#include "testing/test_backend.h"

namespace tessera {

struct NnTest {
  explicit NnTest(const char* device, size_t arena_bytes = size_t(16) << 20)
      : backend(make_test_backend(device, 1)),
        memory(*backend, size_t(16) << 20),
        arena(backend.get(), backend->allocate(arena_bytes, "test arena")) {}

  // Positions count from 0 in each row; documents start at 0; half of head size D rotated by made-up angles.
  Context context(int64_t B, int64_t T, int64_t D, Dtype dtype = Dtype::f32) {
    Context ctx(arena);
    ctx.dtype = dtype, ctx.B = B, ctx.T = T;
    ctx.positions = list(Dtype::i32, {B, T}, [&](int64_t i) { return double(i % T); });
    ctx.starts = memory.zeros(Dtype::i32, {B, T});
    ctx.row_keys = list(Dtype::i64, {B}, [](int64_t b) { return double(100 + b); });
    ctx.cos = memory.random(Dtype::f32, {T, D / 2}, 11);
    ctx.sin = memory.random(Dtype::f32, {T, D / 2}, 12);
    return ctx;
  }

  // Elements value(0), value(1), ...
  template <class F>
  Tensor list(Dtype dtype, Shape shape, F&& value) {
    std::vector<double> values(size_t(shape.size()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = value(int64_t(i));
    return memory.of(dtype, shape, values);
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

// Devices with f32 rows.
inline std::vector<const char*> f32_devices() {
  std::vector<const char*> out;
  for (const DeviceRow& row : every_device())
    if (row.dtype == Dtype::f32) out.push_back(row.device);
  return out;
}

// Tests of one device, or of a device and a case with a name.
class OnDevices : public testing::TestWithParam<const char*> {};
template <class Case>
class CasesOnDevices : public testing::TestWithParam<std::tuple<const char*, Case>> {};
inline std::string device_name(const testing::TestParamInfo<const char*>& info) { return info.param; }
template <class Case>
std::string device_case_name(const testing::TestParamInfo<std::tuple<const char*, Case>>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name;
}

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
