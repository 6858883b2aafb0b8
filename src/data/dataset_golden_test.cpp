// Rows against what fsdp_qlora and TRL make of them, and against the broken files of shared/data/broken.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "data/dataset.h"
#include "data/dataset_find.h"
#include "data/dataset_kinds.h"
#include "data/loader.h"
#include "io/file.h"
#include "io/json.h"
#include "testing/golden.h"

namespace tessera {
namespace {

const Tokenizer& tokenizer_named(const std::string& name) {
  static std::map<std::string, Tokenizer> loaded;
  auto found = loaded.find(name);
  if (found == loaded.end()) found = loaded.emplace(name, Tokenizer::load(shared("tokenizers/" + name))).first;
  return found->second;
}

// The lines of a golden file whose `key` has the given value.
std::vector<Json> cases_of(const std::string& file, const std::string& key, const std::string& value) {
  std::vector<Json> out;
  for (const std::string& line : split(read_file(shared("golden/text/" + file)), '\n'))
    if (!line.empty() && line.find(str("\"", value, "\"")) != std::string::npos)
      if (Json c = Json::parse(line); c[key] == value) out.push_back(std::move(c));
  return out;
}

std::vector<int32_t> labels_of(const Json& golden) {
  const auto ids = golden["input_ids"].get<std::vector<int32_t>>();
  std::vector<int32_t> labels(ids.size(), -100);
  for (const Json& span : golden["loss_spans"])
    for (size_t i = span[0]; i < span[1].get<size_t>(); ++i) labels[i] = ids[i];
  return labels;
}

// Every golden row must be among the rows that the options give.
void expect_rows(const std::vector<Json>& cases, const DatasetOptions& options, const Tokenizer& tokenizer, const std::string& kind) {
  ASSERT_FALSE(cases.empty());
  const std::vector<InspectedRow> rows = inspect_rows(options, &tokenizer, tokenizer.vocab_size(), 1000);
  for (const Json& golden : cases) {
    const size_t number = golden.value("row", size_t(0));
    ASSERT_LT(number, rows.size());
    const InspectedRow& row = rows[number];
    SCOPED_TRACE(str("row ", number, ": ", row.text));
    EXPECT_EQ(row.kind, kind);
    EXPECT_EQ(row.dropped, golden.value("dropped", false));
    if (golden.contains("text")) {
      EXPECT_EQ(row.text, golden["text"].get<std::string>());
    }
    if (row.dropped) continue;
    EXPECT_EQ(row.example.ids, golden["input_ids"].get<std::vector<int32_t>>());
    EXPECT_EQ(row.example.labels, labels_of(golden));
  }
}

class DatasetGolden : public testing::TestWithParam<const char*> {};

}  // namespace

TEST_P(DatasetGolden, FsdpQlora) {
  NEEDS_SHARED();
  const Tokenizer& tokenizer = tokenizer_named(GetParam());
  const std::string file = str("datasets_fsdp_qlora_", GetParam(), ".jsonl");
  const std::pair<const char*, const char*> datasets[] = {
      {"alpaca", "alpaca"}, {"alpaca_sample", "alpaca"}, {"guanaco", "guanaco"}, {"sql", "sql"}, {"orca_math", "orca_math"}};
  for (const auto& [name, kind] : datasets) {
    SCOPED_TRACE(name);
    const std::vector<Json> cases = cases_of(file, "dataset", name);
    DatasetOptions options;
    options.dialect = "fsdp_qlora";
    options.dataset = shared(str("data/", cases.at(0)["file"].get<std::string>()));
    options.context_length = 1 << 20;
    EXPECT_EQ(cases.size(), 40u);
    expect_rows(cases, options, tokenizer, kind);
  }
}

TEST_P(DatasetGolden, FsdpQloraDummy) {
  NEEDS_SHARED();
  const std::vector<Json> cases = cases_of(str("datasets_fsdp_qlora_", GetParam(), ".jsonl"), "dataset", "dummy");
  DatasetOptions options;
  options.dialect = "fsdp_qlora";
  options.dataset = "dummy";
  options.context_length = cases.at(0)["context_length"];
  options.samples = 3;
  const Tokenizer& tokenizer = tokenizer_named(GetParam());
  expect_rows(cases, options, tokenizer, "alpaca");
  const Dataset data = Dataset::load(options, &tokenizer, tokenizer.vocab_size());
  EXPECT_EQ(data.size(), 3);
  EXPECT_EQ(data.report().truncated, 3);
  EXPECT_EQ(data[2].ids, cases[0]["input_ids"].get<std::vector<int32_t>>());
}

TEST_P(DatasetGolden, Trl) {
  NEEDS_SHARED();
  const Tokenizer& tokenizer = tokenizer_named(GetParam());
  const std::pair<const char*, const char*> types[] = {{"text", "text"},
                                                       {"text_truncated", "text"},
                                                       {"text_field_content", "text"},
                                                       {"messages", "messages"},
                                                       {"sharegpt", "sharegpt"},
                                                       {"prompt_completion", "prompt_completion"},
                                                       {"prompt_completion_all_loss", "prompt_completion"},
                                                       {"prompt_completion_truncated", "prompt_completion"},
                                                       {"prompt_completion_chat", "prompt_completion_chat"}};
  for (const auto& [type, kind] : types) {
    SCOPED_TRACE(type);
    const std::vector<Json> cases = cases_of(str("datasets_trl_", GetParam(), ".jsonl"), "type", type);
    const Json& first = cases.at(0);
    if (first["chat_template"] == "tokenizer") continue;  // conversations are written with chatml only
    const Json& given = first["options"];
    DatasetOptions options;
    options.dialect = "trl";
    options.dataset = shared(str("data/", first["file"].get<std::string>()));
    options.context_length = given["max_length"].is_null() ? 1 << 20 : given["max_length"].get<int64_t>();
    options.completion_only = given.value("completion_only_loss", true);
    options.text_field = given.value("dataset_text_field", "text");
    if (options.text_field != "text") {
      const std::string renamed = str(testing::TempDir(), "renamed_", GetParam(), ".jsonl");
      write_file_atomic(renamed, replace_all(read_file(options.dataset), "{\"text\":", str("{\"", options.text_field, "\":")));
      options.dataset = renamed;
    }
    expect_rows(cases, options, tokenizer, kind);
    options.dialect = "tessera";
    expect_rows(cases, options, tokenizer, kind);
  }
}

TEST_P(DatasetGolden, AlpacaInOtherDialectsIsThatOfFsdpQlora) {
  NEEDS_SHARED();
  DatasetOptions options;
  options.dataset = shared("data/alpaca_200.jsonl");
  options.context_length = 1 << 20;
  expect_rows(cases_of(str("datasets_fsdp_qlora_", GetParam(), ".jsonl"), "dataset", "alpaca"), options, tokenizer_named(GetParam()),
              "alpaca");
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, DatasetGolden, testing::Values("llama2", "llama3"),
                         [](const auto& info) { return std::string(info.param); });

// Golden labels stand at their own token; targets stand one place before. `golden` is one collator's batch of `examples`.
static void expect_batch(const std::vector<Example>& examples, const Json& golden, int32_t pad) {
  std::vector<const Example*> pointers;
  for (const Example& e : examples) pointers.push_back(&e);
  const Batch batch = collate(pointers);
  const Json &ids = golden["input_ids"], &labels = golden["labels"];
  ASSERT_EQ(batch.B, int64_t(ids.size()));
  ASSERT_EQ(batch.T, int64_t(ids[0].size()));
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t t = 0; t < batch.T; ++t) {
      const auto row = size_t(b), column = size_t(t), at = size_t(b * batch.T + t);
      const bool padding = column >= examples[row].ids.size();
      EXPECT_EQ(padding ? pad : batch.ids[at], ids[row][column].get<int32_t>());
      EXPECT_EQ(batch.targets[at], t + 1 < batch.T ? labels[row][column + 1].get<int32_t>() : -100);
    }
}

TEST(DatasetGolden, Collate) {
  NEEDS_SHARED();
  int batches = 0;
  for (const std::string& line : split(read_file(shared("golden/text/collate.jsonl")), '\n')) {
    if (line.empty()) continue;
    SCOPED_TRACE(++batches);
    const Json golden = Json::parse(line);
    const auto limit = golden["fsdp_qlora"]["context_length"].get<size_t>();
    std::vector<Example> whole, cut;
    for (const Json& e : golden["examples"]) {
      whole.push_back({e["input_ids"].get<std::vector<int32_t>>(), e["labels"].get<std::vector<int32_t>>()});
      Example& c = cut.emplace_back(whole.back());
      c.ids.resize(std::min(limit, c.ids.size()));
      c.labels.resize(c.ids.size());
    }
    const int32_t pad = golden["pad_token_id"];
    if (golden["trl_padded"]["pad_to_multiple_of"].is_null()) expect_batch(whole, golden["trl_padded"], pad);
    expect_batch(cut, golden["fsdp_qlora"], pad);
  }
  EXPECT_EQ(batches, 24);
}

TEST(DatasetGolden, ReportSaysThatChatmlIsUsed) {
  NEEDS_SHARED();
  DatasetOptions options;
  options.dataset = shared("data/chat_messages.jsonl");
  const Dataset data = Dataset::load(options, &tokenizer_named("llama2"), 32000);
  EXPECT_EQ(data.report().chat_template, "chatml");
  ASSERT_EQ(data.report().notes.size(), 2u);
  EXPECT_NE(data.report().notes[0].find("chatml"), std::string::npos);
  EXPECT_NE(data.report().notes[1].find("<|im_start|>"), std::string::npos);
}

TEST(DatasetGolden, GuanacoByNameHasTheFirstHumanTurnAsPrompt) {
  NEEDS_SHARED();
  DatasetOptions options;
  options.dataset = shared("data/guanaco_text.jsonl");
  const Tokenizer& tokenizer = tokenizer_named("llama2");
  EXPECT_EQ(inspect_rows(options, &tokenizer, 0, 1).at(0).kind, "text");
  options.dialect = "fsdp_qlora";
  EXPECT_EQ(inspect_rows(options, &tokenizer, 0, 1).at(0).kind, "guanaco");
}

TEST(DatasetGolden, IdsBeyondTheModelAreRefused) {
  NEEDS_SHARED();
  DatasetOptions options;
  options.dataset = shared("data/sql.jsonl");
  EXPECT_THROW(Dataset::load(options, &tokenizer_named("llama2"), 1000), Error);
}

namespace {

int64_t read_all(const std::string& path) {
  const DatasetOptions options;
  Rows rows(find_dataset(path));
  const RowKind* kind = nullptr;
  while (rows.next()) {
    RowText text;
    if (!kind) kind = &kind_of(rows, options);
    kind->read(rows, options, 0, text);
  }
  return rows.number() + 1;
}

// What an error must name: the file, and the line, byte and column where they are given. What may also be read has no agreed byte.
std::vector<std::string> places_of(const Json& broken) {
  std::vector<std::string> places = {broken["file"].get<std::string>()};
  if (broken.contains("line")) places.push_back(str("line ", broken["line"].get<int>(), ","));
  if (broken.contains("byte") && broken["expect"] == "error") places.push_back(str("byte ", broken["byte"].get<int>()));
  if (broken.contains("column")) places.push_back(str("column \"", broken["column"].get<std::string>(), "\""));
  return places;
}

}  // namespace

TEST(DatasetGolden, BrokenFiles) {
  NEEDS_SHARED();
  int files = 0;
  for (const Json& broken : read_json(shared("data/broken/broken.json"))) {
    const std::string file = broken["file"], expect = broken["expect"];
    SCOPED_TRACE(str(file, ": ", broken["what"].get<std::string>()));
    ++files;
    const bool read_here = ends_with(file, ".json") || ends_with(file, ".jsonl");
    try {
      const int64_t rows = read_all(shared("data/broken/" + file));
      EXPECT_TRUE(read_here);
      EXPECT_NE(expect, "error");
      if (broken.contains("rows")) {
        EXPECT_EQ(rows, broken["rows"].get<int64_t>());
      }
    } catch (const Error& error) {
      const std::string message = error.what();
      if (!read_here) {
        EXPECT_NE(message.find("not read yet"), std::string::npos) << message;
        continue;
      }
      EXPECT_NE(expect, "ok") << message;
      for (const std::string& place : places_of(broken))
        EXPECT_NE(message.find(place), std::string::npos) << place << " is not in: " << message;
    }
  }
  EXPECT_EQ(files, 40);
}

}  // namespace tessera
