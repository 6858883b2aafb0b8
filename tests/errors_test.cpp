// What a user gets wrong: exit code 1, a message that says what is allowed and what to do, and nothing of an earlier run is touched.
#include <chrono>

#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

class Errors : public Tiny {
 protected:
  // The run must refuse, name all of `parts`, and leave the folder of an earlier run as it was.
  void expect_refused(const Words& words, const Words& parts) const {
    make_folder(path("out"));
    for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "train.jsonl", "tessera.yaml"})
      write_file_atomic(path(str("out/", name)), "of an earlier run");
    const auto before = files_of(path("out"));
    const Ended ended = run(words);
    EXPECT_EQ(ended.code, 1) << ended.err;
    for (const auto& part : parts + Words{"\n  allowed: ", "\n  do this: "}) expect_contains(ended.err, part);
    EXPECT_EQ(ended.out, "");
    EXPECT_EQ(files_of(path("out")), before);
  }
  void expect_option_refused(const Words& more, const Words& parts) const { expect_refused(tessera(training("out", more)), parts); }
};

TEST_F(Errors, Options) {
  expect_option_refused({"--lora_rnak", "4"}, {"--lora_rnak", "--lora_rank"});
  expect_option_refused({"-r", "4"}, {"-r"});
  expect_option_refused({"--packing", "true"}, {"--packing", "not yet"});
  expect_option_refused({"--train_type", "hqq_lora"}, {"--train_type hqq_lora", "not yet", "qlora"});
  expect_option_refused({"--train_type", "qlorra"}, {"--train_type", "qlorra", "write qlora"});
  expect_option_refused({"--lr", "fast"}, {"--lr", "fast", "a number above 0"});
  expect_option_refused({"--lr", "-1"}, {"--lr", "a number above 0"});
  expect_option_refused({"--batch_size", "2.5"}, {"--batch_size", "a whole number from 1"});
  expect_option_refused({"--lora_rank", "0"}, {"--lora_rank", "a whole number from 1"});
  expect_option_refused({"--lora_target_modules", "nothing_here"}, {"nothing_here"});
  expect_option_refused({"--resume_from_checkpoint", path("nowhere")}, {"nowhere"});
  expect_option_refused({"--precision", "fp32", "--bf16", "true"}, {"contradicts"});
  expect_option_refused({"rows.jsonl"}, {"rows.jsonl"});
  expect_refused(tessera({"train", "--dataset", path("rows.jsonl"), "--output_dir", path("out")}), {"--model is missing"});
  expect_refused(tessera({"trian"}), {"trian", "train"});
  expect_refused(tessera({"launch", "train"}), {"--num_processes"});
  expect_refused(tessera({"launch", "--num_processes", "2", "tokenize"}), {"tokenize"});
}

TEST_F(Errors, ConfigFile) {
  write_file_atomic(path("unknown.yaml"), "model: m\n\nlora_rnak: 3\n");
  expect_option_refused({"--config", path("unknown.yaml")}, {path("unknown.yaml") + " line 3", "lora_rank"});
  write_file_atomic(path("open.yaml"), "model: m\ndataset: [rows\n");
  expect_option_refused({"--config", path("open.yaml")}, {path("open.yaml") + " line "});
  write_file_atomic(path("value.yaml"), "lora_rank: many\n");
  expect_option_refused({"--config", path("value.yaml")}, {path("value.yaml") + " line 1", "many"});
  expect_option_refused({"--config", path("nowhere.yaml")}, {"nowhere.yaml"});
}

TEST_F(Errors, ModelFolder) {
  expect_option_refused({"--model", path("nowhere")}, {"nowhere"});
  expect_option_refused({"--init", "pretrained"}, {"model.safetensors"});
  make_folder(path("empty"));
  expect_option_refused({"--model", path("empty")}, {path("empty")});
  expect_refused(tessera({"generate", "--model", path("model"), "--prompt", "x"}), {path("model")});
  expect_refused(tessera({"eval", "--model", path("model"), "--dataset", path("text.jsonl")}), {path("model")});
  expect_refused(tessera({"tokenize", "--model", path("empty")}), {path("empty")});
}

TEST_F(Errors, Rows) {
  expect_option_refused({"--dataset", path("nowhere.jsonl")}, {"nowhere.jsonl"});
  write_file_atomic(path("big.jsonl"), "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 64]}\n");
  expect_option_refused({"--dataset", path("big.jsonl")}, {"big.jsonl", "line 2", "64", "0 to 63"});
  write_file_atomic(path("torn.jsonl"), "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 6\n");
  expect_option_refused({"--dataset", path("torn.jsonl")}, {"torn.jsonl", "line 2"});
  write_file_atomic(path("none.jsonl"), "");
  expect_option_refused({"--dataset", path("none.jsonl")}, {"none.jsonl"});
}

TEST_F(Errors, BrokenFilesOfRows) {
  NEEDS_SHARED();
  for (const auto& [file, place] : std::vector<std::pair<std::string, std::string>>{{"missing_comma.jsonl", "line 5"},
                                                                                    {"truncated_last_line.jsonl", "line 6"},
                                                                                    {"invalid_utf8.jsonl", "line 4"},
                                                                                    {"missing_column.jsonl", "output"},
                                                                                    {"number_for_string.jsonl", "line 7"},
                                                                                    {"deep_nesting.jsonl", "line 2"}})
    expect_option_refused({"--dataset", shared("data/broken/" + file)}, {file, place});
}

TEST_F(Errors, BrokenModels) {
  NEEDS_SHARED();
  const std::string list = shared_text("golden/models/broken/broken.json");
  write_file_atomic(path("small.jsonl"), "{\"input_ids\": [1, 2, 3]}\n");
  int refused = 0;
  for (int i = 0; json_at(list, str("/cases/", i)) != "(none)"; ++i) {
    const std::string folder = replace_all(json_at(list, str("/cases/", i, "/folder")), "\"", "");
    SCOPED_TRACE(folder);
    const Words eval = {"eval", "--model", shared("golden/models/broken/" + folder), "--dataset", path("small.jsonl"), "--threads", "1"};
    if (json_at(list, str("/cases/", i, "/must")) == "\"load\"") {
      well(run(tessera(eval)));
      continue;
    }
    Words parts;
    for (int k = 0; json_at(list, str("/cases/", i, "/error_must_name/", k)) != "(none)"; ++k)
      parts.push_back(replace_all(json_at(list, str("/cases/", i, "/error_must_name/", k)), "\"", ""));
    expect_refused(tessera(eval), parts);
    ++refused;
  }
  EXPECT_EQ(refused, 41);
}

TEST_F(Errors, AllRanksOfMpiexecEndAtOnce) {
  for (const Words& more : {Words{"--model", path("nowhere")}, Words{"--lora_rnak", "3"}}) {
    expect_refused(mpiexec(2, training("out", more)), {"[rank "});
    expect_refused(tessera(Words{"launch", "--num_processes", "2"} + training("out", more)), {"[rank "});
  }
}

// Another rank's error may not leave a rank waiting: it would never return from its next collective.
TEST_F(Errors, OneRankEndsTheOthers) {
  for (const int bad : {0, 1}) {
    std::vector<Words> ranks(2, training("out"));
    ranks[size_t(bad)] = training("out", {"--model", path("nowhere")});
    Program program(mpiexec(ranks));
    const Ended ended = program.wait(20);
    EXPECT_NE(ended.code, 0);
    expect_contains(ended.err, str("[rank ", bad, "] "));
  }
}

TEST_F(Errors, OneRankEndsTheOthersInTheMiddle) {
  Program program(mpiexec(2, training("out", {"--max_steps", "100000"})));
  wait_for(program, "out/train.jsonl");
  remove_all(path("out"));
  const Ended ended = program.wait(20);
  EXPECT_EQ(ended.code, 1) << ended.err;
  expect_contains(ended.err, "[rank 0] ");
  expect_contains(ended.err, "train.jsonl");
}

}  // namespace
}  // namespace tessera
