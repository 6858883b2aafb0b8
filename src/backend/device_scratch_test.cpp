// What products take beside the arena: as said before, and no more.
#include "backend/device_scratch.h"

#include <gtest/gtest.h>

#include "backend/dry_backend.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

constexpr float table[16] = {-1.0f, -0.7f, -0.53f, -0.4f, -0.28f, -0.18f, -0.09f, 0.0f,
                             0.08f, 0.16f, 0.25f,  0.34f, 0.44f,  0.56f,  0.72f,  1.0f};

struct DeviceScratch : OnEveryDevice {
  Codes4 codes(int64_t rows, int64_t cols) {
    Codes4 w;
    w.rows = rows, w.cols = cols, w.table = table;
    w.codes = memory.of(Dtype::u8, {rows * cols / 2}, to_doubles(memory.ids({rows * cols / 2}, 11, 256)));
    w.absmax = memory.random(Dtype::f32, {(rows * cols + 63) / 64}, 12);
    return w;
  }
  Product product(int64_t m, int64_t n, int64_t k) {
    Product p;
    p.c = memory.zeros(dtype, {m, n}), p.transpose_b = true;
    p.add(memory.random(dtype, {m, k}, 1), codes(n, k));
    return p;
  }
  size_t size() const { return size_of(dtype); }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceScratch, ::testing::ValuesIn(every_device()), case_name);

TEST_P(DeviceScratch, OfTheLargestMatrixOfCodes) {
  Product p = product(20, 48, 64);
  EXPECT_EQ(product_scratch(p), matmul_workspace + 48 * 64 * size());
  p.add(memory.zeros(dtype, {20, 128}), codes(48, 128));
  EXPECT_EQ(product_scratch(p), matmul_workspace + 48 * 128 * size());
  Product dense;
  dense.c = p.c, dense.transpose_b = true;
  dense.add(memory.zeros(dtype, {20, 0}), memory.zeros(dtype, {48, 0}));
  EXPECT_EQ(product_scratch(dense), 0u);
  dense.add(memory.zeros(dtype, {20, 64}), memory.zeros(dtype, {48, 64}));
  EXPECT_EQ(product_scratch(dense), matmul_workspace);
}

TEST_P(DeviceScratch, NothingForFewRows) {
  EXPECT_EQ(is_fused_product(product(8, 48, 64)), dtype != Dtype::f32);
  EXPECT_EQ(product_scratch(product(8, 48, 64)), dtype == Dtype::f32 ? matmul_workspace + 48 * 64 * size() : 0);
  EXPECT_FALSE(is_fused_product(product(9, 48, 64)));
  EXPECT_FALSE(is_fused_product(product(1, 48, 80)));
  Product p = product(2, 48, 64);
  p.transpose_b = false, p.c = memory.zeros(dtype, {2, 64}), p.term[0].a = memory.zeros(dtype, {2, 48});
  EXPECT_FALSE(is_fused_product(p)) << "the codes of a column do not stand side by side";
  p = product(2, 48, 64);
  p.add(memory.zeros(dtype, {2, 8}), memory.zeros(dtype, {48, 8}));
  EXPECT_EQ(is_fused_product(p), dtype != Dtype::f32);
  p.add(memory.zeros(dtype, {2, 8}), memory.zeros(dtype, {48, 8}));
  EXPECT_FALSE(is_fused_product(p)) << "two narrow matrices";
}

TEST_P(DeviceScratch, IsWhatADeviceTakes) {
  if (backend->host_can_read()) GTEST_SKIP() << "the CPU has no such piece";
  const size_t before = backend->ledger().used();
  size_t most = 0;
  for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>(4, 48, 64), {20, 48, 64}, {20, 48, 256}, {1, 100, 96}, {9, 16, 32}}) {
    const Product p = product(m, n, k);
    backend->gemm(p);
    most = std::max(most, product_scratch(p));
    EXPECT_EQ(backend->ledger().used() - before, most) << m;
  }
}

// Rows up to the most, stretches that end within 128, columns that end within 16, an adapter, and all that is added on the way out.
TEST_P(DeviceScratch, FusedProductsAreTheirSums) {
  for (const int64_t m : {1, 2, 5, 8})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>(16, 32), {50, 1120}, {33, 2176}, {7, 128}})
      for (const Dtype out : {dtype, Dtype::f32}) {
        TestMemory own(*backend);
        Product p;
        p.c = own.random(out, {m, n}, 3), p.transpose_b = true, p.alpha = 0.5f, p.accumulate = true;
        p.bias = own.random(dtype, {n}, 4), p.addend = own.random(dtype, {m, n}, 5);
        const Codes4 w = codes(n, k);
        const Tensor values = own.zeros(dtype, {n, k});
        backend->codebook4_decode(values, w.codes, w.absmax, table, 64);
        p.add(own.random(dtype, {m, 24}, 6), own.random(dtype, {n, 24}, 7));
        p.add(own.random(dtype, {m, k}, 1), w);
        std::vector<double> wanted = to_doubles(p.c), bias = to_doubles(p.bias), addend = to_doubles(p.addend);
        for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += bias[i % size_t(n)] + addend[i];
        for (const auto& [left, right] : {std::pair(p.term[0].a, p.term[0].b.dense), {p.term[1].a, values}}) {
          const std::vector<double> x = to_doubles(left), y = to_doubles(right);
          const size_t depth = size_t(left.cols());
          for (size_t i = 0; i < wanted.size(); ++i)
            for (size_t j = 0; j < depth; ++j) wanted[i] += 0.5 * x[i / size_t(n) * depth + j] * y[i % size_t(n) * depth + j];
        }
        backend->gemm(p);
        expect_close(p.c, wanted, out == Dtype::f32 ? 1e-5 : tolerance, "fused");
      }
}

// The device takes what the plan counts, also where a kernel of our own has no use for the sizes, and where there are more pieces than one.
TEST_P(DeviceScratch, OfAdaptersIsWhatADeviceTakes) {
  if (backend->host_can_read()) GTEST_SKIP() << "the CPU has no such piece";
  for (const auto& [m, k, r] : {std::tuple<int64_t, int64_t, int64_t>(3, 40, 8), {70, 1100, 16}, {1100, 24, 64}, {20, 40, 5}, {9, 37, 8}})
    for (const int operation : {0, 1, 2}) {
      const auto alone = make_test_backend(GetParam().device, 1);
      DryBackend dry(true);
      TestMemory own(*alone), planned(dry);
      const auto run = [&](Backend& b, TestMemory& room) {
        const size_t before = b.ledger().used();
        std::vector<AdapterProduct> all;
        for (int i = 0; i < 3; ++i)
          all.push_back({room.zeros(dtype, {m, r}), room.zeros(dtype, {r, k}), room.zeros(Dtype::f32, {r, k}), 1, {}});
        const Tensor x = room.zeros(dtype, {m, k});
        if (operation == 0) b.adapters(all, x, {});
        if (operation == 1) b.adapters_backward(all, x, {});
        if (operation == 2) b.adapters_input_gradient(x, all, {});
        EXPECT_EQ(b.drops_inside(all), dtype != Dtype::f32 && r % 8 == 0 && k % 8 == 0);
        return b.ledger().used() - before;
      };
      EXPECT_EQ(run(*alone, own), run(dry, planned)) << m << " " << k << " " << r << " operation " << operation;
    }
}

// Enough blocks of threads for a large GPU from a small matrix, and no piece that is smaller than what it costs.
TEST(AdapterPieces, AreChosenBySizesAlone) {
  EXPECT_EQ(adapter_pieces(8192, 4096), 2);
  EXPECT_EQ(adapter_pieces(2048, 4096), 8);
  EXPECT_EQ(adapter_pieces(2048, 1024), 2);
  EXPECT_EQ(adapter_pieces(1, 100), 1);
  EXPECT_EQ(adapter_pieces(100000, 4096), 1);
  EXPECT_EQ(adapter_backward_pieces(8192, 4096), 8);
  EXPECT_EQ(adapter_backward_pieces(8192, 14336), 3);
  EXPECT_EQ(adapter_backward_pieces(100, 14336), 1);
}

// Where c is rounded after each term, what an adapter adds goes first: the error is that of one rounding.
TEST_P(DeviceScratch, AnAdapterCostsNoSecondRounding) {
  if (dtype == Dtype::f32) GTEST_SKIP() << "of 16-bit numbers";
  const int64_t m = 40, n = 64, k = 256, r = 8;
  const Tensor x = memory.random(dtype, {m, k}, 1), w = memory.random(dtype, {n, k}, 2);
  const Tensor t = memory.random(dtype, {m, r}, 3), b = memory.random(dtype, {n, r}, 4, 0.1f);
  const Tensor exact = memory.zeros(Dtype::f32, {m, n});
  Product p;
  p.c = exact, p.transpose_b = true;
  p.add(x, w), p.add(t, b);
  backend->gemm(p);
  const std::vector<double> wanted = to_doubles(exact);
  p.c = memory.zeros(dtype, {m, n});
  backend->gemm(p);
  const Tensor rounded = memory.of(dtype, {m, n}, wanted);
  EXPECT_LE(relative_error(to_doubles(p.c), wanted), 1.1 * relative_error(to_doubles(rounded), wanted));
}

}  // namespace
}  // namespace tessera
