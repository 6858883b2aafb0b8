// Steps, phases and threads of a profile, its trace, and its table. Times are made up or only compared with each other.
#include "backend/profile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "backend/profile_table.h"
#include "core/text.h"

namespace tessera {
namespace {

Operation operation(const char* name, double flops, double bytes, int64_t size = 1) {
  Operation o;
  o.name = name;
  o.rank = 1, o.sizes[0] = size;
  o.flops = flops, o.bytes = bytes;
  return o;
}

const Operation product = operation("product", 8000, 100), sum = operation("sum", 0, 600);

// One step with `calls` calls of 1 microsecond each.
void step(Profile& profile, int64_t number, int calls) {
  const ProfileStep scope(number);
  for (int i = 0; i < calls; ++i) profile.record(product, 0, 1000);
}

double sum_of_phases(const StepProfile& p) {
  return std::accumulate(p.phases.begin(), p.phases.end(), 0.0, [](double s, const StepProfile::PhaseRow& r) { return s + r.seconds; });
}

TEST(Profile, IsOfItsThreadAsLongAsItLives) {
  EXPECT_EQ(Profile::current(), nullptr);
  {
    const Profile profile(3);
    EXPECT_EQ(Profile::current(), &profile);
    EXPECT_EQ(profile.rank(), 3);
    std::thread([] { EXPECT_EQ(Profile::current(), nullptr); }).join();
  }
  EXPECT_EQ(Profile::current(), nullptr);
  const ProfileStep step(1);
  EXPECT_EQ(in_phase(Phase::forward, [] { return 7; }), 7) << "scopes without a profile do nothing";
}

TEST(Profile, LeavesOutTheFirstTwoStepsWhenThereAreMore) {
  Profile profile(0);
  step(profile, 11, 100);
  EXPECT_EQ(profile.average().operations.at(0).calls, 100);
  step(profile, 12, 50);
  StepProfile p = profile.average();
  EXPECT_EQ(p.steps, 2);
  EXPECT_EQ(p.first_step, 11);
  EXPECT_EQ(p.last_step, 12);
  EXPECT_EQ(p.operations.at(0).calls, 75);
  step(profile, 13, 3);
  step(profile, 14, 4);
  p = profile.average();
  EXPECT_EQ(p.steps, 2);
  EXPECT_EQ(p.first_step, 13);
  EXPECT_EQ(p.last_step, 14);
  ASSERT_EQ(p.operations.size(), 1u);
  EXPECT_EQ(p.operations[0].calls, 3.5);
  EXPECT_DOUBLE_EQ(p.operations[0].seconds, 3.5e-6);
}

TEST(Profile, KnowsNothingOutsideSteps) {
  Profile profile(0);
  profile.record(product, 0, 1000);
  in_phase(Phase::forward, [] {});
  const StepProfile p = profile.average();
  EXPECT_EQ(p.steps, 0);
  EXPECT_TRUE(p.operations.empty());
  EXPECT_EQ(sum_of_phases(p), 0);
  EXPECT_EQ(profile_text(p, {}).size(), 1u);
}

TEST(Profile, TimeBelongsToTheInnermostPhase) {
  Profile profile(0);
  {
    const ProfileStep scope(1);
    profile.record(sum, 0, 1);
    const ProfileScope backward(Phase::backward);
    profile.record(sum, 0, 10);
    in_phase(Phase::recompute, [&] { profile.record(sum, 0, 100); });
    profile.record(sum, 0, 1000);
  }
  const StepProfile p = profile.average();
  EXPECT_DOUBLE_EQ(p.phases[size_t(Phase::other)].in_operations, 1e-9);
  EXPECT_DOUBLE_EQ(p.phases[size_t(Phase::backward)].in_operations, 1010e-9);
  EXPECT_DOUBLE_EQ(p.phases[size_t(Phase::recompute)].in_operations, 100e-9);
  EXPECT_EQ(p.phases[size_t(Phase::forward)].seconds, 0);
  EXPECT_NEAR(sum_of_phases(p), p.seconds, 1e-12);
}

TEST(Profile, OtherThreadsStandBeside) {
  Profile profile(0);
  {
    const ProfileStep scope(1);
    std::thread([&] { in_phase(Phase::communication, [&] { profile.record(sum, 0, 5000); }); }).join();
    profile.record(product, 0, 7);
  }
  const StepProfile p = profile.average();
  ASSERT_EQ(p.operations.size(), 1u);
  EXPECT_STREQ(p.operations[0].operation.name, "product");
  ASSERT_EQ(p.beside.size(), 1u);
  EXPECT_STREQ(p.beside[0].operation.name, "sum");
  EXPECT_DOUBLE_EQ(p.beside[0].seconds, 5e-6);
  EXPECT_EQ(p.phases[size_t(Phase::communication)].seconds, 0);
}

TEST(Profile, TellsManyShapesApart) {
  Profile profile(0);
  {
    const ProfileStep scope(1);
    for (int round = 0; round < 2; ++round)
      for (int64_t size = 0; size < 1000; ++size) profile.record(operation("sum", 0, 1, size), 0, size);
  }
  const StepProfile p = profile.average();
  ASSERT_EQ(p.operations.size(), 1000u);
  for (const StepProfile::Row& row : p.operations) {
    EXPECT_EQ(row.calls, 2);
    EXPECT_NEAR(row.seconds, 2e-9 * double(row.operation.sizes[0]), 1e-15);
  }
}

TEST(Trace, HoldsStepsPhasesAndOperations) {
  Profile profile(1);
  {
    const ProfileStep scope(5);
    const ProfileScope phase(Phase::forward);
    const int64_t begin = Profile::now();
    profile.record(operation("sum", 12, 600, 4), begin, begin + 1500);
  }
  const auto trace = nlohmann::json::parse(trace_file({profile.trace(profile.start()), "{\"name\": \"of another rank\"}"}));
  std::map<std::string, nlohmann::json> events;
  for (const auto& e : trace.at("traceEvents")) events[e.at("name")] = e;
  ASSERT_EQ(events.size(), 6u) << "two names, step, phase, operation, the other rank's";
  for (const char* name : {"step 5", "forward", "sum"}) {
    EXPECT_EQ(events[name].at("ph"), "X");
    EXPECT_EQ(events[name].at("pid"), 1);
    EXPECT_EQ(events[name].at("tid"), 0);
    EXPECT_GE(events[name].at("ts"), 0);
  }
  EXPECT_DOUBLE_EQ(events["sum"].at("dur"), 1.5);
  EXPECT_EQ(events["sum"].at("args").at("shapes"), "4");
  EXPECT_EQ(events["sum"].at("args").at("dtype"), "float32");
  EXPECT_EQ(events["sum"].at("args").at("flops"), 12);
  EXPECT_EQ(events["sum"].at("args").at("bytes"), 600);
  EXPECT_LE(events["step 5"].at("ts"), events["forward"].at("ts"));
  EXPECT_LE(events["forward"].at("ts"), events["sum"].at("ts"));
}

TEST(Trace, EndsWithAWholeStep) {
  Profile profile(0);
  const int half = int(Profile::most_events) / 2 + 1;
  for (int number = 1; number <= 4; ++number) step(profile, number, half);
  EXPECT_EQ(profile.traced_steps(), 2);
  EXPECT_EQ(profile.average().steps, 2) << "the averages go on";
  const auto trace = nlohmann::json::parse(trace_file({profile.trace(0)}));
  EXPECT_EQ(trace.at("traceEvents").size(), size_t(2 + 2 * (half + 1)));
}

TEST(Limits, TheLargerOfWorkAndTraffic) {
  ProfileLimits limits;
  limits.f32 = 4000, limits.bf16 = 8000, limits.bytes = 100;
  EXPECT_DOUBLE_EQ(limits.seconds(product), 2);
  Operation o = product;
  o.dtype = Dtype::bf16;
  EXPECT_DOUBLE_EQ(limits.seconds(o), 1);
  o.bytes = 300;
  EXPECT_DOUBLE_EQ(limits.seconds(o), 3);
  EXPECT_DOUBLE_EQ(limits.seconds(sum), 6);
}

StepProfile made_up() {
  StepProfile p;
  p.first_step = 3, p.last_step = 12, p.steps = 10;
  p.seconds = 40;
  p.operations = {{product, 2, 10}, {sum, 1, 18}, {operation("product", 4000, 0, 2), 1, 4}};
  p.phases[size_t(Phase::forward)] = {35, 32};
  p.phases[size_t(Phase::communication)] = {5, 0};
  return p;
}

TEST(Table, LargestLossFirstAndTheStepInAll) {
  ProfileLimits limits;
  limits.f32 = 4000, limits.bf16 = 8000, limits.bytes = 100;
  const auto lines = lines_by_operation(made_up(), limits);
  std::vector<std::string> names;
  double seconds = 0;
  for (const ProfileLine& l : lines) names.push_back(l.name), seconds += l.seconds;
  EXPECT_EQ(names, (std::vector<std::string>{"sum f32", "product f32", "waiting for weights", "outside operations"}));
  EXPECT_DOUBLE_EQ(seconds, 40);
  EXPECT_DOUBLE_EQ(lines[0].lost(), 12);
  EXPECT_DOUBLE_EQ(lines[1].lost(), 14 - (2 * 2 + 1));
  EXPECT_EQ(lines[1].calls, 3);
  EXPECT_DOUBLE_EQ(lines[1].flops, 20000);
  EXPECT_DOUBLE_EQ(lines[2].seconds, 5);
  EXPECT_DOUBLE_EQ(lines[3].seconds, 3);
  EXPECT_EQ(lines_by_shape(made_up(), limits).size(), 3u);
}

TEST(Table, SaysWhatTheNumbersAre) {
  ProfileLimits limits;
  limits.f32 = 4000, limits.bf16 = 8e9, limits.bytes = 100;
  const std::string text = join(profile_text(made_up(), limits), "\n");
  for (const char* part : {"step 40000.00 ms, the mean of 10 steps, 3 to 12 (the first two are left out); in operations 80.0 %; with each "
                           "at its limit 11000.00 ms (27.5 %)",
                           "limits: 8 GF/s bf16", "forward                 35000.00", "of limit   lost ms", "sum f32", "product f32 2"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
}

}  // namespace
}  // namespace tessera
