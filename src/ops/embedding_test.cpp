#include "ops/embedding.h"

#include "core/error.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

struct Embedding : OnEveryDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, Embedding, ::testing::ValuesIn(every_device()), case_name);

TEST_P(Embedding, CopiesRows) {
  for (const int64_t cols : {1, 7, 33, 100}) {
    const Tensor table = memory.random(dtype, {11, cols}, 1), ids = memory.ids({3, 13}, 2, 11), out = memory.zeros(dtype, {3, 13, cols});
    embedding(out, table, ids);
    const std::vector<double> rows = to_doubles(table), id = to_doubles(ids), got = to_doubles(out);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], rows[size_t(id[i / size_t(cols)]) * size_t(cols) + i % size_t(cols)]);
  }
}

TEST_P(Embedding, BackwardSumsTokens) {
  for (const int64_t cols : {1, 7, 33, 100, 200}) {
    const Tensor dtable = memory.random(Dtype::f32, {11, cols}, 1), ids = memory.ids({3, 13}, 2, 11);
    const Tensor dout = memory.random(dtype, {3, 13, cols}, 3);
    std::vector<double> expected = to_doubles(dtable);
    const std::vector<double> id = to_doubles(ids), dy = to_doubles(dout);
    for (size_t i = 0; i < dy.size(); ++i) expected[size_t(id[i / size_t(cols)]) * size_t(cols) + i % size_t(cols)] += dy[i];
    embedding_backward(dtable, dout, ids);
    expect_close(dtable, expected, 1e-6, "dtable");
  }
}

// A table whose ids need three bytes, more tokens than are sorted at once, ids that occur once, often, and never: the bits of a sum in the
// order of tokens.
TEST_P(Embedding, BackwardKeepsTheOrderOfTokens) {
  const int64_t rows = 70000, cols = 4, tokens = 2500;
  std::vector<double> id(static_cast<size_t>(tokens));
  for (size_t t = 0; t < id.size(); ++t) id[t] = t % 3 == 0 ? 65537 : t % 5 == 0 ? double(t % 7) : double(t * 7919 % size_t(rows));
  const Tensor dtable = memory.zeros(Dtype::f32, {rows, cols}), ids = memory.of(Dtype::i32, {1, tokens}, id);
  const Tensor dout = memory.random(dtype, {1, tokens, cols}, 3);
  const std::vector<double> dy = to_doubles(dout);
  std::vector<float> expected(size_t(rows * cols));
  for (size_t i = 0; i < dy.size(); ++i) expected[size_t(id[i / size_t(cols)]) * size_t(cols) + i % size_t(cols)] += float(dy[i]);
  embedding_backward(dtable, dout, ids);
  const std::vector<double> got = to_doubles(dtable);
  EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin()));
}

TEST_P(Embedding, SameBitsOnAnyThreads) {
  expect_same_on_any_threads(GetParam().device, [&](TestMemory& m) {
    const Tensor dtable = m.zeros(Dtype::f32, {5, 333});
    embedding_backward(dtable, m.random(dtype, {4, 50, 333}, 1), m.ids({4, 50}, 2, 5));
    return to_doubles(dtable);
  });
}

TEST_P(Embedding, ScatterUndoesGather) {
  for (const int64_t cols : {1, 7, 33, 100}) {
    const Tensor x = memory.random(dtype, {9, cols}, 1), index = memory.of(Dtype::i32, {4}, {8, 0, 3, 5});
    const Tensor some = memory.zeros(dtype, {4, cols}), out = memory.random(dtype, {9, cols}, 2);
    gather_rows(some, x, index);
    scatter_rows(out, some, index);
    std::vector<double> expected = to_doubles(x);
    for (const size_t dropped : {1, 2, 4, 6, 7}) std::fill_n(expected.begin() + ptrdiff_t(dropped * size_t(cols)), cols, 0);
    EXPECT_EQ(to_doubles(out), expected);
  }
}

struct EmbeddingOnce : OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, EmbeddingOnce, ::testing::ValuesIn(test_devices()), device_name);

TEST_P(EmbeddingOnce, GradientsAgreeWithDifferences) {
  const Tensor table = memory.random(Dtype::f32, {5, 33}, 1), ids = memory.ids({2, 7}, 2, 5);
  const Tensor dtable = memory.zeros(Dtype::f32, table.shape), out = memory.zeros(Dtype::f32, {2, 7, 33});
  expect_gradients({.inputs = {table},
                    .gradients = {dtable},
                    .out = out,
                    .forward = [&] { embedding(out, table, ids); },
                    .backward = [&](Tensor dout) { embedding_backward(dtable, dout, ids); }},
                   memory);
}

TEST(EmbeddingErrors, NameTheShapes) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor table = memory.zeros(Dtype::f32, {5, 4}), ids = memory.ids({2, 3}, 1, 5);
  EXPECT_THROW(embedding(memory.zeros(Dtype::f32, {2, 4, 4}), table, ids), Error);
  EXPECT_THROW(embedding(memory.zeros(Dtype::bf16, {2, 3, 4}), table, ids), Error);
  EXPECT_THROW(embedding_backward(memory.zeros(Dtype::bf16, {5, 4}), memory.zeros(Dtype::bf16, {2, 3, 4}), ids), Error);
  EXPECT_THROW(gather_rows(memory.zeros(Dtype::f32, {6, 5}), table, ids), Error);
  EXPECT_THROW(scatter_rows(table, memory.zeros(Dtype::f32, {5, 4}), ids), Error);
}

}  // namespace
}  // namespace tessera
