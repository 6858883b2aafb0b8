#include "bench/ops/bench.h"

#include <benchmark/benchmark.h>

#include <chrono>

#include "core/text.h"
#include "quant/format.h"

namespace tessera {
namespace {

// SplitMix64 (Steele, Lea and Flood, 2014): quick enough to fill a head of a gigabyte.
uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

}  // namespace

Work arithmetic(Dtype dtype, double flops) { return {Work::Kind::arithmetic, dtype, flops, 0, 0}; }
Work reading(double bytes) { return {Work::Kind::reading, Dtype::f32, 0, bytes, size_t(bytes)}; }
Work copying(double read, double written) { return {Work::Kind::copying, Dtype::f32, 0, read + written, size_t(read + written)}; }
Work updating(double read, double written) { return {Work::Kind::updating, Dtype::f32, 0, read + written, size_t(read)}; }
Work product(Dtype dtype, int64_t m, int64_t n, int64_t k) { return arithmetic(dtype, 2 * double(m) * double(n) * double(k)); }

Tensor Memory::take(Dtype dtype, Shape shape) {
  buffers_.push_back(backend_.allocate(size_t(shape.size()) * size_of(dtype), "a benchmark"));
  return {buffers_.back().data(), dtype, shape, &backend_};
}

Tensor Memory::zeros(Dtype dtype, Shape shape) {
  const Tensor t = take(dtype, shape);
  backend_.fill_zero(t);
  return t;
}

Tensor Memory::random(Dtype dtype, Shape shape, float scale) {
  const Tensor t = take(dtype, shape);
  const uint64_t seed = mixed(++drawn_);
  if (dtype == Dtype::u8) {
    for (int64_t i = 0; i < t.size(); ++i) t.as<uint8_t>()[i] = uint8_t(mixed(seed + uint64_t(i)));
    return t;
  }
  dispatch_float(dtype, [&]<class T>() {
    for (int64_t i = 0; i < t.size(); ++i) t.as<T>()[i] = T(scale * (float(int32_t(mixed(seed + uint64_t(i)) >> 32) >> 8) * 0x1p-23f));
  });
  return t;
}

Tensor Memory::ids(Shape shape, int64_t below) {
  const Tensor t = take(Dtype::i32, shape);
  const uint64_t seed = mixed(++drawn_);
  for (int64_t i = 0; i < t.size(); ++i) t.as<int32_t>()[i] = int32_t(mixed(seed + uint64_t(i)) % uint64_t(below));
  return t;
}

Tensor Memory::of(const std::vector<int32_t>& values, Shape shape) {
  const Tensor t = take(Dtype::i32, shape);
  std::copy(values.begin(), values.end(), t.as<int32_t>());
  return t;
}

Codes4 Memory::codes(int64_t rows, int64_t cols) {
  const int64_t blocks = rows * cols / block4;
  Codes4 c;
  c.rows = rows, c.cols = cols, c.block = block4;
  c.table = nf4_table(), c.map = dynamic_map();
  c.codes = random(Dtype::u8, {rows * cols / 2});
  c.absmax = random(Dtype::u8, {blocks});
  c.nested_absmax = random(Dtype::f32, {(blocks + nested_block - 1) / nested_block}, 0.01f);
  c.nested_offset = random(Dtype::f32, {1}, 0.01f);
  return c;
}

const Call& Bench::ready(const std::string& name, const MakeCall& make) {
  if (ready_.name == name) return ready_.call;
  ready_ = {};
  auto memory = std::make_unique<Memory>(backend_);
  Call call = make(*memory);
  call();
  ready_ = {name, std::move(memory), std::move(call)};
  return ready_.call;
}

double Bench::limit(const Work& work) {
  switch (work.kind) {
    case Work::Kind::arithmetic:
      return limits_.gemm(work.dtype);
    case Work::Kind::reading:
      return limits_.read(work.working_set);
    case Work::Kind::copying:
      return limits_.copy(work.working_set);
    case Work::Kind::updating:
      return limits_.update(work.working_set);
  }
  return 0;
}

void Bench::add(const std::string& name, Work work, MakeCall make) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [=, this](benchmark::State& state) {
                                 const Call& call = ready(name, make);
                                 const double best = limit(work);
                                 const auto start = std::chrono::steady_clock::now();
                                 for (auto _ : state) call();
                                 const double calls = double(state.iterations()) / seconds_since(start);
                                 const double reached = calls * (work.kind == Work::Kind::arithmetic ? work.flops : work.bytes);
                                 state.counters[work.kind == Work::Kind::arithmetic ? "GF/s" : "GB/s"] = reached * 1e-9;
                                 state.counters["limit"] = best * 1e-9;
                                 state.counters["share"] = reached / best;
                               })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

const char* short_name(Dtype dtype) { return dtype == Dtype::bf16 ? "bf16" : "f32"; }

std::string sizes(std::initializer_list<int64_t> all) {
  std::string out;
  for (const int64_t n : all) out += str(out.empty() ? "" : "x", n);
  return out;
}

}  // namespace tessera
