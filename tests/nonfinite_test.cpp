// A loss that is not finite ends the program with one message, also on several ranks, and what is needed to look into it is on disk.
#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

class Nonfinite : public Tiny {
 protected:
  // The first update makes the weights so large that no forward pass is finite any more.
  Words exploding(const Words& more = {}) const {
    return training("out", Words{"--train_type", "full", "--lr", "1e18", "--lr_scheduler", "constant", "--warmup_ratio", "0"} + more);
  }
  static size_t count(const std::string& text, const std::string& part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
    return n;
  }
};

TEST_F(Nonfinite, EndsTheRunWithOneMessage) {
  const Words two = {"launch", "--num_processes", "2"};
  for (const Words& words : {tessera(exploding()), mpiexec(2, exploding()), tessera(two + exploding())}) {
    remove_all(path("out"));
    const Ended ended = run(words);
    EXPECT_EQ(ended.code, 1) << ended.err;
    for (const char* part :
         {"step 2, ", "output of model.layers.0: the loss is NaN, first in row ", "\n  allowed: a finite loss and gradient",
          "\n  do this: look at row ", "a lower --lr (now 1e+18)", "--max_skipped_steps", "out/nonfinite-2.json"})
      expect_contains(ended.err, part);
    EXPECT_EQ(count(ended.err, "  allowed: "), 1u) << ended.err;
    const std::string report = read_file(path("out/nonfinite-2.json"));
    EXPECT_EQ(json_at(report, "/step"), "2");
    EXPECT_EQ(json_at(report, "/skipped"), "false");
    EXPECT_EQ(json_at(report, "/file"), str("\"", path("rows.jsonl"), "\""));
    EXPECT_NE(json_at(report, "/micro_batches/0/rows/1"), "(none)");
    EXPECT_FALSE(file_exists(path("out/model.safetensors")));
  }
}

TEST_F(Nonfinite, StepsAreSkippedAsOftenAsAllowed) {
  const Ended ended = run(mpiexec(2, exploding({"--max_skipped_steps", "2"})));
  EXPECT_EQ(ended.code, 1) << ended.err;
  expect_contains(ended.err, "skipped  step 2: output of model.layers.0");
  expect_contains(ended.err, "skipped  step 3: output of model.layers.0");
  expect_contains(ended.err, "step 4, output of model.layers.0");
  expect_contains(ended.err, "--max_skipped_steps 2, and 2 were skipped");
  const auto lines = split(read_file(path("out/train.jsonl")), '\n');
  ASSERT_EQ(lines.size(), 5u) << "three steps, what the last save took, an empty end";
  EXPECT_EQ(json_at(lines[0], "/skipped"), "(none)");
  EXPECT_EQ(json_at(lines[2], "/skipped"), "true");
  EXPECT_EQ(json_at(lines[2], "/loss"), "null");
  EXPECT_EQ(json_at(lines[3], "/step"), "3");
  EXPECT_TRUE(file_exists(path("out/checkpoint-3/checkpoint.json"))) << "what was learned before the end is kept";
  for (const int step : {2, 3, 4})
    EXPECT_EQ(json_at(read_file(path(str("out/nonfinite-", step, ".json"))), "/skipped"), step < 4 ? "true" : "false");
}

}  // namespace
}  // namespace tessera
