#include "data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"
#include "io/file.h"

namespace tessera {
namespace {

// n rows of different lengths; row r has the ids r * 10, r * 10 + 1, ... and no loss on its first two labels.
Dataset made_rows(int n) {
  std::string content;
  for (int r = 0; r < n; ++r) {
    std::vector<std::string> ids, labels;
    for (int i = 0; i < 3 + r % 4; ++i) {
      ids.push_back(str(r * 10 + i));
      labels.push_back(i < 2 ? "-100" : ids.back());
    }
    content += str("{\"input_ids\":[", join(ids, ","), "],\"labels\":[", join(labels, ","), "]}\n");
  }
  DatasetOptions options;
  options.dataset = str(testing::TempDir(), "loader_", testing::UnitTest::GetInstance()->current_test_info()->name(), ".jsonl");
  write_file_atomic(options.dataset, content);
  Dataset data = Dataset::load(options, nullptr, 0);
  remove_all(options.dataset);
  return data;
}

void expect_same(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.B, b.B);
  EXPECT_EQ(a.T, b.T);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.positions, b.positions);
  EXPECT_EQ(a.starts, b.starts);
  EXPECT_EQ(a.row_keys, b.row_keys);
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.target_tokens, b.target_tokens);
  EXPECT_EQ(a.input_tokens, b.input_tokens);
}

// The micro-batches of `windows` windows in order, gathered from all ranks.
std::vector<Batch> gather(const Dataset& data, const LoaderOptions& options, int ranks, int64_t windows) {
  std::vector<Loader> loaders(size_t(ranks), Loader(data, options));
  std::vector<Batch> out;
  for (int64_t w = 0; w < windows; ++w) {
    std::vector<std::vector<Batch>> of_rank;
    for (int r = 0; r < ranks; ++r) of_rank.push_back(loaders[size_t(r)].next(r, ranks));
    for (const auto& batches : of_rank) EXPECT_EQ(int64_t(batches.size()), (options.micro_batches + ranks - 1) / ranks);
    for (int64_t m = 0; m < int64_t(of_rank[0].size()) * ranks; ++m) {
      const Batch& batch = of_rank[size_t(m % ranks)][size_t(m / ranks)];
      if (m < options.micro_batches)
        out.push_back(batch);
      else
        EXPECT_EQ(batch.B, 0);
    }
  }
  return out;
}

}  // namespace

TEST(Collate, ShiftsLabelsAndPadsRight) {
  const Example a = {{1, 2, 3}, {1, -100, 3}}, b = {{4, 5}, {4, 5}};
  const Batch batch = collate({&a, &b});
  EXPECT_EQ(batch.B, 2);
  EXPECT_EQ(batch.T, 3);
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{1, 2, 3, 4, 5, 0}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{-100, 3, -100, 5, -100, -100}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(batch.starts, std::vector<int32_t>(6, 0));
  EXPECT_EQ(batch.target_tokens, 2);
  EXPECT_EQ(batch.input_tokens, 5);
  EXPECT_EQ(collate({}).B, 0);
}

TEST(Loader, EveryRowOncePerEpochOnAnyNumberOfRanks) {
  const Dataset data = made_rows(23);
  for (int ranks = 1; ranks <= 4; ++ranks)
    for (int64_t batch_size : {1, 2, 5})
      for (int64_t micro_batches : {1, 3, 4, 7}) {
        const LoaderOptions options{.batch_size = batch_size, .micro_batches = micro_batches};
        const int64_t windows = Loader(data, options).steps_per_epoch();
        std::vector<int64_t> rows, keys;
        for (const Batch& batch : gather(data, options, ranks, windows)) {
          rows.insert(rows.end(), batch.rows.begin(), batch.rows.end());
          keys.insert(keys.end(), batch.row_keys.begin(), batch.row_keys.end());
        }
        EXPECT_EQ(rows, shuffled(23, 42, 0));
        std::vector<int64_t> in_order(23);
        std::iota(in_order.begin(), in_order.end(), 0);
        EXPECT_EQ(keys, in_order);
      }
}

TEST(Loader, RanksSeeTheMicroBatchesOfOneRank) {
  const Dataset data = made_rows(29);
  const LoaderOptions options{.batch_size = 2, .micro_batches = 4};
  const std::vector<Batch> one = gather(data, options, 1, 9);  // two epochs and a bit
  for (int ranks = 2; ranks <= 5; ++ranks) {
    const std::vector<Batch> many = gather(data, options, ranks, 9);
    ASSERT_EQ(many.size(), one.size());
    for (size_t m = 0; m < one.size(); ++m) expect_same(many[m], one[m]);
  }
}

TEST(Loader, EpochsDifferAndKeysRunOn) {
  const Dataset data = made_rows(10);
  Loader loader(data, {.batch_size = 10, .micro_batches = 1});
  const Batch first = loader.next(0, 1)[0], second = loader.next(0, 1)[0];
  EXPECT_NE(first.rows, second.rows);
  EXPECT_EQ(second.rows, shuffled(10, 42, 1));
  EXPECT_EQ(second.row_keys.front(), 10);
  EXPECT_EQ(second.row_keys.back(), 19);
}

TEST(Loader, FileOrderWithoutShuffle) {
  const Dataset data = made_rows(5);
  Loader loader(data, {.batch_size = 2, .micro_batches = 2, .shuffle = false});
  EXPECT_EQ(loader.steps_per_epoch(), 2);
  const std::vector<Batch> window = loader.next(0, 1);
  EXPECT_EQ(window[0].rows, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(window[1].rows, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(window[1].ids, (std::vector<int32_t>{20, 21, 22, 23, 24, 0, 30, 31, 32, 33, 34, 35}));
  EXPECT_EQ(window[1].targets, (std::vector<int32_t>{-100, 22, 23, 24, -100, -100, -100, 32, 33, 34, 35, -100}));
}

TEST(Loader, ShortWindowGivesEmptyBatches) {
  const Dataset data = made_rows(3);
  Loader loader(data, {.batch_size = 2, .micro_batches = 4, .shuffle = false});
  const std::vector<Batch> window = loader.next(0, 1);
  ASSERT_EQ(window.size(), 4u);
  EXPECT_EQ(window[0].B, 2);
  EXPECT_EQ(window[1].B, 1);
  EXPECT_EQ(window[2].B, 0);
  EXPECT_EQ(window[3].B, 0);
  EXPECT_EQ(window[3].target_tokens, 0);
  EXPECT_EQ(loader.state(), (LoaderState{1, 0}));
}

TEST(Loader, ResumeGivesTheSameBatches) {
  const Dataset data = made_rows(17);
  const LoaderOptions options{.batch_size = 2, .micro_batches = 2, .seed = 7};
  Loader whole(data, options);
  for (int w = 0; w < 7; ++w) whole.next(0, 1);
  Loader resumed(data, options);
  resumed.resume(whole.state());
  EXPECT_EQ(resumed.state(), (LoaderState{1, 2}));
  for (int w = 0; w < 6; ++w) {
    const std::vector<Batch> a = whole.next(0, 1), b = resumed.next(0, 1);
    for (size_t m = 0; m < a.size(); ++m) expect_same(a[m], b[m]);
  }
  EXPECT_EQ(whole.state(), resumed.state());
  EXPECT_THROW(resumed.resume({0, resumed.steps_per_epoch()}), Error);
}

TEST(Loader, RefusesSizesBelowOne) {
  const Dataset data = made_rows(2);
  EXPECT_THROW(Loader(data, {.batch_size = 0}), Error);
  EXPECT_THROW(Loader(data, {.micro_batches = 0}), Error);
}

}  // namespace tessera
