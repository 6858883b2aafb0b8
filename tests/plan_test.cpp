// tessera plan, and what a run does with its plan.
#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

using PlanOfARun = Tiny;

double number_at(const std::string& json, const std::string& pointer) { return std::stod(json_at(json, pointer)); }

// The line of the last step; saves and evaluations have lines of their own.
std::string last_step(const std::string& text) {
  std::string last;
  for (const auto& line : split(trim(text), '\n'))
    if (line.find("\"memory_peak\"") != line.npos) last = line;
  return last;
}

// The process itself, code and libraries with it, stays within what was planned.
TEST_F(PlanOfARun, ResidentMemoryStaysWithinIt) {
  for (const int ranks : {1, 2}) {
    const std::string out = str("out", ranks);
    const Words command = training(out, {"--train_type", "full", "--max_steps", "6", "--save_steps", "2"});
    well(run(ranks == 1 ? tessera(command) : mpiexec(ranks, command)));
    const std::string plan = read_file(path(out + "/plan.json"));
    EXPECT_EQ(json_at(plan, "/ranks"), str(ranks));
    EXPECT_EQ(json_at(plan, "/fits"), "true");
    EXPECT_LE(number_at(last_step(read_file(path(out + "/train.jsonl"))), "/memory_peak"), number_at(plan, "/needed_bytes"));
  }
}

TEST_F(PlanOfARun, IsWhatTesseraPlanSays) {
  const Words command = training("out", {"--train_type", "lora", "--max_steps", "2", "--save_steps", "1"});
  well(run(tessera(command)));
  const std::string of_run = read_file(path("out/plan.json"));
  const std::string planned = well(run(tessera(Words{"plan", "--json"} + Words(command.begin() + 1, command.end())))).out;
  for (const char* key : {"/peak_bytes", "/flops_per_step", "/keep_layers", "/phases/0/bytes", "/phases/1/bytes"})
    EXPECT_EQ(json_at(planned, key), json_at(of_run, key)) << key;
}

TEST_F(PlanOfARun, SaysWhatToChange) {
  const Words command{"plan", "--model",      path("model"), "--train_type",    "full",  "--context_length",
                      "2048", "--batch_size", "32",          "--device_memory", "800MB", "--gradient_checkpointing",
                      "false"};
  const Ended ended = run(tessera(command));
  EXPECT_EQ(ended.code, 3) << "a plan that does not fit is told from one that cannot be made";
  expect_contains(ended.out, "DOES NOT FIT: ");
  expect_contains(ended.out, "--batch_size 1 --gradient_accumulation_steps 32: ");
  const Ended bad = run(tessera({"plan", "--model", path("model"), "--device_memory", "24 pounds"}));
  EXPECT_EQ(bad.code, 1);
  expect_contains(bad.err, "--device_memory: \"24 pounds\" is no amount of memory");
}

// Memory that the system refuses, at several sizes of what it gives: the message names who holds what, and the run ends with 1.
TEST_F(PlanOfARun, RefusedMemoryIsToldWithItsHolders) {
  well(run(tessera(training("out"))));
  int told = 0;
  for (const int megabytes : {300, 400, 500}) {
    const Words command = tessera(training("out2", {"--context_length", "4000", "--batch_size", "64", "--force"}));
    const Ended ended = run(Words{"/bin/sh", "-c", str("ulimit -v ", megabytes * 1024, "; exec \"$@\""), "sh"} + command);
    if (ended.code == 0) continue;
    EXPECT_EQ(ended.code, 1) << ended.err;
    expect_contains(ended.err, "allowed: ");
    told += ended.err.find("memory") != std::string::npos;
  }
  EXPECT_GT(told, 0);
}

}  // namespace
}  // namespace tessera
