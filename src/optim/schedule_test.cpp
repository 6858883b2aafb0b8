#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "testing/golden.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

// Checks the rows whose options are ours; returns how many they were.
template <class Ours>
int check_rows(const std::string& file, const std::string& dialect, Ours&& ours) {
  const Json golden = Json::parse(shared_text(file));
  int checked = 0;
  for (const Json& row : golden["rows"]) {
    const Json options = row.value("kwargs", Json::object());
    if (!ours(row["name"].get<std::string>(), options)) continue;
    ScheduleOptions o{row["name"], dialect, golden["base_lr"], golden["total_steps"], 0};
    const double steps = row.value("warmup_steps", -1.0), ratio = row.value("warmup_ratio", -1.0);
    o.warmup_steps = dialect == "fsdp_qlora" ? resolve_warmup(dialect, o.name, steps, ratio, o.total_steps)
                                             : resolve_warmup(dialect, o.name, row["warmup"].get<double>(), -1, o.total_steps);
    const std::string warmup = dialect == "fsdp_qlora" ? "resolved_warmup_steps" : "warmup_steps";
    EXPECT_EQ(o.warmup_steps, row[warmup].get<int64_t>()) << row["name"];
    for (size_t s = 0; s < row["lr"].size(); ++s) {
      const double expected = row["lr"][s];
      EXPECT_NEAR(learning_rate(o, int64_t(s)), expected, 1e-12 * expected)
          << row["name"] << " warm-up " << o.warmup_steps << " step " << s;
    }
    ++checked;
  }
  return checked;
}

TEST(Schedule, TransformersGolden) {
  NEEDS_SHARED();
  const auto ours = [](const std::string& name, const Json& options) {
    if (name == "cosine_with_restarts") return options == Json{{"num_cycles", 1}};
    if (name == "polynomial") return options == Json{{"power", 1.0}};
    return options.empty();
  };
  for (const char* dialect : {"tessera", "trl"}) EXPECT_EQ(check_rows("golden/train/schedules/transformers.json", dialect, ours), 7 * 3);
}

TEST(Schedule, FsdpQloraGolden) {
  NEEDS_SHARED();
  const auto ours = [](const std::string& name, const Json& options) {
    if (name == "polynomial") return options == Json{{"lr_end", 1e-07}, {"power", 1.0}};
    if (name == "exponential") return options == Json{{"gamma", 0.99}};
    return options.empty();
  };
  EXPECT_EQ(check_rows("golden/train/schedules/fsdp_qlora.json", "fsdp_qlora", ours), 10);
}

// Vectors of the fsdp_qlora reference: 10 warm-up steps of 100.
TEST(Schedule, FsdpQloraVectors) {
  ScheduleOptions o{"linear", "fsdp_qlora", 1, 100, 10};
  const auto rates = [&](std::vector<int64_t> steps) {
    std::vector<double> out;
    for (int64_t s : steps) out.push_back(std::round(learning_rate(o, s) * 1e4) / 1e4);
    return out;
  };
  EXPECT_EQ(rates({0, 5, 10, 55, 100}), (std::vector<double>{0, 0.5, 1, 0.5, 0}));
  o.name = "cosine";
  EXPECT_EQ(rates({0, 5, 10, 55, 100, 120}), (std::vector<double>{0, 0.5, 1, 0.55, 0.1, 0.2053}));
  o.name = "cosine_with_restarts";
  EXPECT_EQ(rates({10, 39, 40, 41, 70, 99, 100}), (std::vector<double>{1, 0.1025, 1, 0.9975, 1, 0.1025, 0.1}));
}

TEST(Schedule, Warmup) {
  EXPECT_EQ(resolve_warmup("tessera", "cosine", -1, -1, 200), 0);
  EXPECT_EQ(resolve_warmup("tessera", "cosine", 10, 0.5, 200), 10);
  EXPECT_EQ(resolve_warmup("tessera", "cosine", 0, 0.031, 200), 7);
  EXPECT_EQ(resolve_warmup("trl", "cosine", 0.031, 0.5, 200), 7);
  EXPECT_EQ(resolve_warmup("fsdp_qlora", "cosine", -1, -1, 209), 20);
  EXPECT_EQ(resolve_warmup("fsdp_qlora", "constant", -1, -1, 209), 0);
  EXPECT_EQ(resolve_warmup("fsdp_qlora", "cosine", 0, -1, 209), 0);
  EXPECT_THROW(resolve_warmup("fsdp_qlora", "cosine", 3, 0.1, 209), Error);
}

std::string refusal(const std::string& name, const std::string& dialect) {
  try {
    learning_rate({name, dialect, 1e-3, 10, 0}, 0);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Schedule, Refusals) {
  EXPECT_NE(refusal("cosin", "tessera").find("did you mean cosine?"), std::string::npos);
  EXPECT_NE(refusal("exponential", "tessera").find("not a schedule of this dialect"), std::string::npos);
  EXPECT_NE(refusal("inverse_sqrt", "fsdp_qlora").find("not a schedule of this dialect"), std::string::npos);
  for (const char* name : {"cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau", "greedy"})
    EXPECT_NE(refusal(name, "tessera").find("not supported yet"), std::string::npos) << name;
  EXPECT_THROW(learning_rate({"polynomial", "tessera", 1e-8, 10, 0}, 3), Error);
}

}  // namespace
}  // namespace tessera
