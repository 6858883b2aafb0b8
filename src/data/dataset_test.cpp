#include "data/dataset.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "core/error.h"
#include "core/text.h"
#include "data/dataset_find.h"
#include "io/file.h"

namespace tessera {
namespace {

class DatasetTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = str(testing::TempDir(), "dataset_", testing::UnitTest::GetInstance()->current_test_info()->name());
    remove_all(folder_);
    make_folder(folder_);
  }
  void TearDown() override { remove_all(folder_); }

  std::string write(const std::string& name, const std::string& content) {
    const std::string path = folder_ + "/" + name;
    write_file_atomic(path, content);
    return path;
  }
  DatasetOptions options(const std::string& content, int64_t context_length = 512) {
    DatasetOptions o;
    o.dataset = write("rows.jsonl", content);
    o.context_length = context_length;
    return o;
  }
  std::string error_of(const DatasetOptions& o, int32_t vocab_size = 0) {
    try {
      Dataset::load(o, nullptr, vocab_size);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  std::string folder_;
};

void expect_has(const std::string& text, const std::string& part) { EXPECT_NE(text.find(part), std::string::npos) << text; }

}  // namespace

TEST_F(DatasetTest, PretokenizedNeedsNoTokenizer) {
  const Dataset data = Dataset::load(options("{\"text\":\"x\",\"input_ids\":[5,6,7],\"attention_mask\":[1,1,1]}\n"
                                             "{\"input_ids\":[8,9],\"labels\":[-100,9]}\n"
                                             "{\"input_ids\":[1,2,3],\"completion_mask\":[0,0,1]}\n"),
                                     nullptr, 10);
  ASSERT_EQ(data.size(), 3);
  EXPECT_EQ(data[0].ids, (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(data[0].labels, data[0].ids);
  EXPECT_EQ(data[1].labels, (std::vector<int32_t>{-100, 9}));
  EXPECT_EQ(data[2].labels, (std::vector<int32_t>{-100, -100, 3}));
  EXPECT_EQ(data.report().kind, "pretokenized");
  EXPECT_EQ(data.report().tokens, 8);
  EXPECT_EQ(data.report().label_tokens, 4);
}

TEST_F(DatasetTest, PretokenizedFaults) {
  expect_has(error_of(options("{\"input_ids\":[1]}\n{\"input_ids\":[1,10]}"), 10), "line 2, byte 18, column \"input_ids\": item 1 is 10");
  expect_has(error_of(options("{\"input_ids\":[-1]}")), "item 0 is -1");
  expect_has(error_of(options("{\"input_ids\":[1,2],\"labels\":[1,-7]}"), 10), "column \"labels\": item 1 is -7");
  expect_has(error_of(options("{\"input_ids\":[1,2],\"labels\":[1]}"), 10), "1 items for 2 ids");
  expect_has(error_of(options("{\"input_ids\":[1,2],\"completion_mask\":[1]}"), 10), "1 items for 2 ids");
  expect_has(error_of(options("{\"input_ids\":[]}")), "the list is empty");
  expect_has(error_of(options("{\"input_ids\":[1,2,3]}\n{\"text\":\"x\"}")),
             "column \"input_ids\": the column is missing; the row has text");
}

TEST_F(DatasetTest, RowsWithNothingToLearnAreDroppedAndCounted) {
  // The first row loses its labels by truncation; of the second only the label at 0 remains, which nothing predicts.
  const DatasetOptions o = options(
      "{\"input_ids\":[1,2,3],\"labels\":[-100,-100,3]}\n"
      "{\"input_ids\":[4,5],\"labels\":[4,-100]}\n"
      "{\"input_ids\":[6,7,8]}\n{\"input_ids\":[9]}\n",
      2);
  const Dataset data = Dataset::load(o, nullptr, 0);
  ASSERT_EQ(data.size(), 1);
  EXPECT_EQ(data[0].ids, (std::vector<int32_t>{6, 7}));
  EXPECT_EQ(data.source_row(0), 2);
  EXPECT_EQ(data.report().rows, 4);
  EXPECT_EQ(data.report().kept, 1);
  EXPECT_EQ(data.report().dropped_without_label, 3);
  EXPECT_EQ(data.report().truncated, 2);
  const std::vector<InspectedRow> rows = inspect_rows(o, nullptr, 0, 3);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_TRUE(rows[0].dropped && rows[1].dropped && !rows[2].dropped);
  expect_has(error_of(options("{\"input_ids\":[9]}\n")), "none of the 1 rows has a token to learn");
}

TEST_F(DatasetTest, UnknownColumnsAreListedWithTheKnownKinds) {
  const std::string error = error_of(options("{\"foo\":1,\"bar\":2}\n"));
  expect_has(error, "no kind of row has these columns: foo, bar");
  expect_has(error, "alpaca (instruction, output)");
  expect_has(error, "text (text)");
}

TEST_F(DatasetTest, TextWithoutTokenizerIsRefused) { expect_has(error_of(options("{\"text\":\"x\"}\n")), "the model has no tokenizer"); }

TEST_F(DatasetTest, OptionsAreChecked) {
  DatasetOptions o = options("{\"input_ids\":[1,2]}\n");
  o.dialect = "jax";
  expect_has(error_of(o), "tessera, trl, fsdp_qlora");
  o.dialect = "trl";
  o.context_length = 1;
  expect_has(error_of(o), "context_length");
}

TEST_F(DatasetTest, SamplesLimitTheNamedSamplesOnly) {
  setenv("TESSERA_DATA", folder_.c_str(), 1);
  write("alpaca.jsonl", "{\"input_ids\":[1,2]}\n{\"input_ids\":[3,4]}\n{\"input_ids\":[5,6]}\n");
  DatasetOptions o;
  o.samples = 2;
  o.dataset = "alpaca_sample";
  EXPECT_EQ(Dataset::load(o, nullptr, 0).size(), 2);
  o.dataset = "alpaca";
  EXPECT_EQ(Dataset::load(o, nullptr, 0).size(), 3);
  o.samples = 0;
  o.dataset = "alpaca_sample";
  EXPECT_EQ(Dataset::load(o, nullptr, 0).size(), 3);
  unsetenv("TESSERA_DATA");
}

TEST_F(DatasetTest, NamesAreLookedUpAsFiles) {
  setenv("TESSERA_DATA", folder_.c_str(), 1);
  const std::string cleaned = write("alpaca_data_cleaned.json", "[]");
  EXPECT_EQ(find_dataset("alpaca"), cleaned);
  EXPECT_EQ(find_dataset("alpaca_sample"), cleaned);
  const std::string own = write("alpaca.jsonl", "{}");
  EXPECT_EQ(find_dataset("alpaca"), own);
  EXPECT_EQ(find_dataset(cleaned), cleaned);
  EXPECT_EQ(find_dataset("alpaca.jsonl"), own);
  try {
    find_dataset("sql");
    FAIL();
  } catch (const Error& error) {
    for (const char* place : {"sql, sql.json, sql.jsonl, data/sql, ", "/sql.jsonl\n", "TESSERA_DATA", "--dataset PATH"})
      expect_has(error.what(), place);
  }
  for (const char* name : {"a.csv", "a.jsonl.gz", "a.parquet", "a.ARROW"}) EXPECT_THROW(find_dataset(write(name, "x")), Error) << name;
  unsetenv("TESSERA_DATA");
}

}  // namespace tessera
