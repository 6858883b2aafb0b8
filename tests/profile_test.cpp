// --profile: the same result as without, a table, and a trace that other programs can read.
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

using Json = nlohmann::json;

class Profiled : public Tiny {
 protected:
  Json trace_of(const std::string& output) const { return Json::parse(read_file(path(output + "/profile.json"))).at("traceEvents"); }
};

struct Spans {
  std::map<std::string, int> names;
  std::vector<Json> steps, inner;
};

Spans spans_of(const Json& events, int rank, int thread) {
  Spans out;
  for (const Json& e : events) {
    if (e.at("ph") != "X" || e.at("pid") != rank || e.at("tid") != thread) continue;
    ++out.names[e.at("name")];
    (e.at("cat") == "step" ? out.steps : out.inner).push_back(e);
  }
  return out;
}

void expect_within_steps(const Spans& spans) {
  for (const Json& e : spans.inner) {
    const double begin = e.at("ts"), end = begin + double(e.at("dur"));
    int around = 0;
    for (const Json& s : spans.steps)
      around += double(s.at("ts")) <= begin + 1e-2 && end <= double(s.at("ts")) + double(s.at("dur")) + 1e-2;
    EXPECT_EQ(around, 1) << e;
  }
}

TEST_F(Profiled, ChangesNothingAndLeavesATrace) {
  const Words qlora = {"--train_type", "qlora", "--precision", "bf16", "--gradient_checkpointing", "true"};
  const Ended plain = well(run(tessera(training("plain", qlora))));
  const Ended ended = well(run(tessera(training("profiled", qlora + Words{"--profile", "true"}))));
  EXPECT_EQ(outcome("profiled"), outcome("plain"));
  EXPECT_FALSE(file_exists(path("plain/profile.json")));
  EXPECT_EQ(plain.err.find("of limit"), std::string::npos);
  for (const char* part : {"the mean of 2 steps, 3 to 4 (the first two are left out)", "GF/s bf16", "forward ", "recompute ", "backward ",
                           "head and loss ", "optimizer ", "\n  gemm bf16 ", "\n  outside operations ", "lost ms", "profile.json: 4 steps"})
    expect_contains(ended.err, part);

  const Json events = trace_of("profiled");
  const Spans spans = spans_of(events, 0, 0);
  EXPECT_EQ(spans.steps.size(), 4u);
  for (const char* name : {"step 1", "step 4", "forward", "recompute", "backward", "head and loss", "optimizer", "gemm", "rmsnorm", "rope",
                           "attention", "attention_backward", "swiglu", "cross_entropy", "adamw", "square_sums"})
    EXPECT_TRUE(spans.names.count(name)) << name;
  EXPECT_EQ(spans.names.at("forward"), 4);
  EXPECT_EQ(spans.names.at("recompute"), 4 * 3);
  EXPECT_EQ(spans.names.at("attention_backward"), 4 * 3);
  expect_within_steps(spans);
  for (const Json& e : spans.inner) {
    if (e.at("name") != "gemm") continue;
    EXPECT_GT(e.at("args").at("flops"), 0);
    EXPECT_GT(e.at("args").at("bytes"), 0);
    EXPECT_EQ(e.at("args").at("dtype"), "bfloat16");
  }
}

// The span of a step holds what train.jsonl calls its seconds.
TEST_F(Profiled, StepsAreThoseOfTheLog) {
  well(run(tessera(training("out", {"--profile", "true"}))));
  const Spans spans = spans_of(trace_of("out"), 0, 0);
  const auto lines = split(trim(read_file(path("out/train.jsonl"))), '\n');
  ASSERT_EQ(lines.size(), spans.steps.size());
  for (size_t i = 0; i < lines.size(); ++i)
    EXPECT_GE(double(spans.steps[i].at("dur")) + 1e-2, 1e6 * std::stod(json_at(lines[i], "/seconds")));
}

TEST_F(Profiled, RanksStandSideBySide) {
  const Words full = {"--train_type", "full", "--gradient_accumulation_steps", "2"};
  well(run(mpiexec(2, training("plain", full))));
  const Ended ended = well(run(mpiexec(2, training("profiled", full + Words{"--profile", "true"}))));
  EXPECT_EQ(outcome("profiled", "model.safetensors"), outcome("plain", "model.safetensors"));
  expect_contains(ended.err, "profile of rank 0");
  expect_contains(ended.err, "beside the step (another thread)");
  const Json events = trace_of("profiled");
  for (const int rank : {0, 1}) {
    const Spans steps = spans_of(events, rank, 0), beside = spans_of(events, rank, 1);
    EXPECT_EQ(steps.steps.size(), 4u) << rank;
    expect_within_steps(steps);
    EXPECT_TRUE(steps.names.count("reduce_scatter") && steps.names.count("communication, waiting")) << rank;
    EXPECT_TRUE(beside.names.count("all_gather")) << rank;
  }
}

TEST_F(Profiled, FsdpQlorasFlagIsThisOne) {
  const Ended ended = well(run(tessera(training("out", {"--profile", "true", "--export_trace", "true"}))));
  expect_contains(ended.err, "--export_trace is accepted and has no effect here: --profile true has one form");
  EXPECT_TRUE(file_exists(path("out/profile.json")));
}

}  // namespace
}  // namespace tessera
