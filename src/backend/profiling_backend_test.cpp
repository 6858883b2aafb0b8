// A profiling backend computes what its owned one computes, and knows what each operation costs.
#include "backend/profiling_backend.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "testing/gradients.h"

namespace tessera {
namespace {

constexpr Dtype f32 = Dtype::f32;

struct Call {
  const char* name;
  double bytes;  // operands and results, once each
  std::function<std::vector<Tensor>(TestMemory&, Backend&)> run;
};

const float* table() {
  static const std::vector<float> values = [] {
    std::vector<float> v;
    for (int i = 0; i < 256; ++i) v.push_back(float(i) / 256 - 0.3f);
    return v;
  }();
  return values.data();
}

std::vector<Call> moving_calls() {
  return {
      {"copy", 800,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {100}, 1), y = m.zeros(f32, {100});
         b.copy(y.data, x.data, 400);
         return std::vector{y};
       }},
      {"fill_zero", 400,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {100}, 1);
         b.fill_zero(x);
         return std::vector{x};
       }},
      {"convert", 600,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {100}, 1), y = m.zeros(Dtype::bf16, {100});
         b.convert(y, x);
         return std::vector{y};
       }},
      {"add", 1200,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {100}, 1), y = m.random(f32, {100}, 2), z = m.zeros(f32, {100});
         b.add(z, x, y);
         return std::vector{z};
       }},
      {"accumulate", 1200,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {100}, 1), y = m.random(f32, {100}, 2);
         b.accumulate(y, x);
         return std::vector{y};
       }},
      {"add_bias", 840,
       [](TestMemory& m, Backend& b) {
         const Tensor y = m.random(f32, {10, 10}, 1), bias = m.random(f32, {10}, 2);
         b.add_bias(y, bias);
         return std::vector{y};
       }},
      {"column_sum", 480,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {10, 10}, 1), sum = m.random(f32, {10}, 2);
         b.column_sum(sum, x);
         return std::vector{sum};
       }},
      {"dropout", 816,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {2, 5, 10}, 1), keys = m.zeros(Dtype::i64, {2}), y = m.zeros(f32, {2, 5, 10});
         b.dropout(y, x, keys, 77, 0.4f);
         return std::vector{y};
       }},
      {"random_normal", 400,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.zeros(f32, {100});
         b.random_normal(x, 5, 17, 0.5f);
         return std::vector{x};
       }},
      {"embedding", 2 * 240 + 24,
       [](TestMemory& m, Backend& b) {
         const Tensor w = m.random(f32, {9, 10}, 1), ids = m.ids({2, 3}, 2, 9), y = m.zeros(f32, {2, 3, 10});
         b.embedding(y, w, ids);
         return std::vector{y};
       }},
      {"embedding_backward", 3 * 240 + 24,
       [](TestMemory& m, Backend& b) {
         const Tensor dy = m.random(f32, {2, 3, 10}, 1), ids = m.ids({2, 3}, 2, 9), dw = m.random(f32, {9, 10}, 3);
         b.embedding_backward(dw, dy, ids);
         return std::vector{dw};
       }},
      {"gather_rows", 2 * 120 + 12,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {9, 10}, 1), index = m.ids({3}, 2, 9), y = m.zeros(f32, {3, 10});
         b.gather_rows(y, x, index);
         return std::vector{y};
       }},
      {"scatter_rows", 360 + 40 + 4,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {1, 10}, 1), index = m.ids({1}, 2, 9), y = m.random(f32, {9, 10}, 3);
         b.scatter_rows(y, x, index);
         return std::vector{y};
       }},
  };
}

std::vector<Call> layer_calls() {
  return {
      {"rmsnorm", 2 * 400 + 2 * 40,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {10, 10}, 1), w = m.random(f32, {10}, 2), y = m.zeros(f32, {10, 10}), rstd = m.zeros(f32, {10});
         b.rmsnorm(y, rstd, x, w, 0.1f);
         return std::vector{y, rstd};
       }},
      {"rmsnorm_backward", 4 * 400 + 4 * 40,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {10, 10}, 1), w = m.random(f32, {10}, 2), dy = m.random(f32, {10, 10}, 3);
         const Tensor rstd = m.random(f32, {10}, 4), dx = m.random(f32, {10, 10}, 5), dw = m.random(f32, {10}, 6);
         b.rmsnorm_backward(dx, dw, dy, x, w, rstd, true);
         return std::vector{dx, dw};
       }},
      {"rope", 2 * 480 + 24 + 2 * 3 * 16,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {2, 3, 2, 10}, 1), cos = m.random(f32, {7, 4}, 2), sin = m.random(f32, {7, 4}, 3);
         b.rope(x, cos, sin, m.ids({2, 3}, 4, 7), true);
         return std::vector{x};
       }},
      {"swiglu", 1200,
       [](TestMemory& m, Backend& b) {
         const Tensor gate = m.random(f32, {100}, 1), up = m.random(f32, {100}, 2), y = m.zeros(f32, {100});
         b.swiglu(y, gate, up);
         return std::vector{y};
       }},
      {"swiglu_backward", 2000,
       [](TestMemory& m, Backend& b) {
         const Tensor gate = m.random(f32, {100}, 1), up = m.random(f32, {100}, 2), dy = m.random(f32, {100}, 3);
         const Tensor dgate = m.zeros(f32, {100}), dup = m.zeros(f32, {100});
         b.swiglu_backward(dgate, dup, dy, gate, up);
         return std::vector{dgate, dup};
       }},
      {"cross_entropy", 2 * 400 + 2 * 40,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {10, 10}, 1), labels = m.ids({10}, 2, 10), loss = m.zeros(f32, {10}), dx = m.zeros(f32, {10, 10});
         b.cross_entropy(loss, dx, x, labels, 0.5f);
         return std::vector{loss, dx};
       }},
      {"codebook4_encode", 64 * 4 + 32 + 4,
       [](TestMemory& m, Backend& b) {
         const Tensor x = m.random(f32, {64}, 1), codes = m.zeros(Dtype::u8, {32}), absmax = m.zeros(f32, {1});
         b.codebook4_encode(codes, absmax, x, table(), 64);
         return std::vector{codes, absmax};
       }},
      {"codebook4_decode", 64 * 4 + 32 + 4,
       [](TestMemory& m, Backend& b) {
         const Tensor out = m.zeros(f32, {64}), codes = m.of(Dtype::u8, {32}, std::vector<double>(32, 0x3a));
         b.codebook4_decode(out, codes, m.random(f32, {1}, 1), table(), 64);
         return std::vector{out};
       }},
      {"nested_decode", 7 * 5 + 8,
       [](TestMemory& m, Backend& b) {
         const Tensor out = m.zeros(f32, {7}), q = m.of(Dtype::u8, {7}, {1, 2, 3, 50, 60, 70, 255});
         b.nested_decode(out, q, m.random(f32, {1}, 1), m.random(f32, {1}, 2), table());
         return std::vector{out};
       }},
      {"nested_encode", 7 * 5 + 4,
       [](TestMemory& m, Backend& b) {
         const Tensor q = m.zeros(Dtype::u8, {7}), scale = m.zeros(f32, {1});
         b.nested_encode(q, scale, m.random(f32, {7}, 1), 0.2f, table());
         return std::vector{q, scale};
       }},
      {"adamw", 3000,
       [](TestMemory& m, Backend& b) {
         const Tensor p = m.random(f32, {100}, 1), s = m.random(f32, {100}, 2), v = m.of(f32, {100}, std::vector<double>(100, 0.3));
         const Tensor copy = m.zeros(Dtype::bf16, {100});
         b.adamw(p, s, v, m.random(f32, {100}, 3), copy, {.lr = 0.1, .weight_decay = 0.2, .step = 3, .gradient_scale = 0.5f});
         return std::vector{p, s, v, copy};
       }},
      {"largest", 160,
       [](TestMemory& m, Backend& b) {
         const Tensor parts = m.zeros(Dtype::f64, {4});
         b.largest(parts, m.of(Dtype::f64, {20}, std::vector<double>(20, 3)));
         return std::vector{parts};
       }},
      {"sum_units", 160,
       [](TestMemory& m, Backend& b) {
         const Tensor parts = m.zeros(Dtype::i64, {4, 2});
         b.sum_units(parts, m.of(Dtype::f64, {20}, std::vector<double>(20, 3)), -4);
         return std::vector{parts};
       }},
      {"square_sums", 400 + 16,
       [](TestMemory& m, Backend& b) {
         const Tensor sums = m.zeros(Dtype::f64, {2});
         b.square_sums(sums, m.random(f32, {100}, 1));
         return std::vector{sums};
       }},
  };
}

struct Attended {
  explicit Attended(TestMemory& m)
      : q(m.random(f32, {2, 5, 4, 8}, 1)),
        k(m.random(f32, {2, 5, 2, 8}, 2)),
        v(m.random(f32, {2, 5, 2, 8}, 3)),
        out(m.zeros(f32, {2, 5, 4, 8})),
        lse(m.zeros(f32, {2, 4, 5})),
        starts(m.zeros(Dtype::i32, {2, 5})) {}
  Tensor q, k, v, out, lse, starts;
  const AttentionShape shape{0.4f, 3};
};

std::vector<Call> attention_calls() {
  const double q = 2 * 5 * 4 * 8 * 4, kv = q / 2, lse = 2 * 4 * 5 * 4, starts = 40;
  return {{"attention", 2 * q + 2 * kv + lse + starts,
           [](TestMemory& m, Backend& b) {
             const Attended a(m);
             b.attention(a.out, a.lse, a.q, a.k, a.v, a.starts, a.shape);
             return std::vector{a.out, a.lse};
           }},
          {"attention_backward", 4 * q + 4 * kv + lse + starts, [](TestMemory& m, Backend& b) {
             const Attended a(m);
             const Tensor dq = m.zeros(f32, a.q.shape), dk = m.zeros(f32, a.k.shape), dv = m.zeros(f32, a.v.shape);
             b.attention_backward(dq, dk, dv, m.random(f32, a.q.shape, 4), a.out, a.lse, a.q, a.k, a.v, a.starts, a.shape);
             return std::vector{dq, dk, dv};
           }}};
}

// Of two adapters of rank 3 on x (10, 20), the second with dropout: t 120 bytes each, a and da 240, x 800.
struct Adapted {
  explicit Adapted(TestMemory& m) : x(m.random(f32, {10, 20}, 1)), room(m.zeros(f32, {10, 20})) {
    for (const uint64_t i : {0, 1}) {
      const Drop drop = i ? Drop{m.zeros(Dtype::i64, {2}), 77, 0.4f} : Drop{};
      all.push_back({m.random(f32, {10, 3}, 2 + i), m.random(f32, {3, 20}, 4 + i), m.random(f32, {3, 20}, 6 + i), 0.5f, drop});
    }
  }
  Tensor x, room;
  std::vector<AdapterProduct> all;
};

std::vector<Call> adapter_calls() {
  return {{"adapters", 800 + 2 * (120 + 240),
           [](TestMemory& m, Backend& b) {
             const Adapted a(m);
             b.adapters(a.all, a.x, a.room);
             return std::vector{a.all[0].t, a.all[1].t};
           }},
          {"adapters_backward", 800 + 2 * (120 + 240 + 2 * 240),
           [](TestMemory& m, Backend& b) {
             const Adapted a(m);
             b.adapters_backward(a.all, a.x, a.room);
             return std::vector{a.all[0].da, a.all[1].da};
           }},
          {"adapters_input_gradient", 2 * 800 + 2 * (120 + 240), [](TestMemory& m, Backend& b) {
             const Adapted a(m);
             b.adapters_input_gradient(a.x, a.all, a.room);
             return std::vector{a.x};
           }}};
}

std::vector<Call> every_call() {
  std::vector<Call> all = moving_calls();
  for (const auto& calls : {layer_calls(), attention_calls(), adapter_calls()}) all.insert(all.end(), calls.begin(), calls.end());
  return all;
}

std::vector<std::vector<double>> results(const Call& call, Backend& backend) {
  TestMemory memory(backend);
  std::vector<std::vector<double>> out;
  for (const Tensor& t : call.run(memory, backend)) out.push_back(to_doubles(t));
  return out;
}

// The one row that a step with this call leaves.
template <class F>
Operation recorded(F&& call) {
  Profile profile(0);
  ProfilingBackend backend(make_backend("cpu", 1), profile);
  TestMemory memory(backend);
  call(memory, backend, profile);
  const StepProfile p = profile.average();
  EXPECT_EQ(p.operations.size(), 1u);
  return p.operations.empty() ? Operation() : p.operations[0].operation;
}

TEST(ProfilingBackend, PassesEveryCallOn) {
  for (const Call& call : every_call()) {
    const auto plain = make_backend("cpu", 2);
    Profile profile(0);
    ProfilingBackend backend(make_backend("cpu", 2), profile);
    EXPECT_EQ(results(call, backend), results(call, *plain)) << call.name;
  }
  Profile profile(0);
  const ProfilingBackend backend(make_backend("cpu", 2), profile);
  EXPECT_EQ(backend.describe(), make_backend("cpu", 2)->describe());
  EXPECT_EQ(backend.threads(), 2);
  EXPECT_EQ(backend.total_memory(), make_backend("cpu", 2)->total_memory());
}

TEST(ProfilingBackend, NamesAndWeighsEveryCall) {
  for (const Call& call : every_call()) {
    Profile profile(0);
    ProfilingBackend backend(make_backend("cpu", 1), profile);
    TestMemory memory(backend);
    {
      const ProfileStep step(1);
      call.run(memory, backend);
    }
    double bytes = -1;
    for (const StepProfile::Row& row : profile.average().operations)
      if (row.operation.name == std::string(call.name)) bytes = row.operation.bytes;
    EXPECT_EQ(bytes, call.bytes) << call.name;
  }
}

TEST(ProfilingBackend, TensorsOfItsMemoryLeadBackToIt) {
  Profile profile(0);
  ProfilingBackend backend(make_backend("cpu", 1), profile);
  TestMemory memory(backend);
  EXPECT_EQ(memory.zeros(f32, {3}).home, &backend);
}

TEST(ProfilingBackend, AttentionCountsTheVisiblePairs) {
  const auto flops = [](int which) {
    return recorded([&](TestMemory& m, Backend& b, Profile&) {
             const Attended a(m);
             const Tensor d = m.zeros(f32, a.q.shape), dk = m.zeros(f32, a.k.shape);
             const ProfileStep step(1);
             if (which == 0) b.attention(a.out, a.lse, a.q, a.k, a.v, a.starts, {1, 0});
             if (which == 1) b.attention(a.out, a.lse, a.q, a.k, a.v, a.starts, a.shape);
             if (which == 2) b.attention_backward(d, dk, dk, d, a.out, a.lse, a.q, a.k, a.v, a.starts, {1, 0});
           })
        .flops;
  };
  const double heads = 2 * 4, width = 8;
  EXPECT_EQ(flops(0), 4 * heads * width * (1 + 2 + 3 + 4 + 5));
  EXPECT_EQ(flops(1), 4 * heads * width * (1 + 2 + 3 + 3 + 3));
  EXPECT_EQ(flops(2), 10 * heads * width * 15);
}

TEST(ProfilingBackend, AdaptersAreOneOperation) {
  const Operation o = recorded([&](TestMemory& m, Backend& b, Profile&) {
    const Adapted a(m);
    const ProfileStep step(1);
    b.adapters(a.all, a.x, a.room);
  });
  EXPECT_EQ(o.shapes(), "10x20x3+3 dropout");
  EXPECT_EQ(o.flops, 2 * 10 * 20 * 6);
}

TEST(ProfilingBackend, ProductOfTwoTerms) {
  const auto plain = make_backend("cpu", 1);
  std::vector<double> values[2];
  const auto compute = [](TestMemory& m) {
    Product p;
    p.c = m.random(Dtype::f32, {6, 7}, 1);
    p.transpose_b = true, p.accumulate = true;
    p.add(m.random(f32, {6, 20}, 2), m.random(f32, {7, 20}, 3));
    p.add(m.random(f32, {6, 3}, 4), m.random(f32, {7, 3}, 5));
    return p;
  };
  const Operation o = recorded([&](TestMemory& m, Backend& b, Profile&) {
    const Product p = compute(m);
    {
      const ProfileStep step(1);
      b.gemm(p);
    }
    values[0] = to_doubles(p.c);
  });
  TestMemory memory(*plain);
  const Product p = compute(memory);
  plain->gemm(p);
  values[1] = to_doubles(p.c);
  EXPECT_EQ(values[0], values[1]);
  EXPECT_STREQ(o.name, "gemm");
  EXPECT_EQ(o.shapes(), "6x7x20+3 nt +=");
  EXPECT_EQ(o.flops, 2 * 6 * 7 * 23);
  EXPECT_EQ(o.bytes, 4 * (2 * 42 + (6 + 7) * 23));
}

TEST(ProfilingBackend, MeasuresItsLimits) {
  const auto backend = make_backend("cpu", 1);
  const ProfileLimits limits = measure_limits(*backend);
  for (const double limit : {limits.f32, limits.bf16, limits.bytes}) EXPECT_GT(limit, 0);
}

TEST(Profiled, WrapsOnlyOnAThreadWithAProfile) {
  auto backend = make_backend("cpu", 1);
  const Backend* const before = backend.get();
  backend = profiled(std::move(backend));
  EXPECT_EQ(backend.get(), before);
  Profile profile(0);
  backend = profiled(std::move(backend));
  EXPECT_NE(backend.get(), before);
  EXPECT_GT(profile.limits.f32, 0);
}

}  // namespace
}  // namespace tessera
