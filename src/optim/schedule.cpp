#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/text.h"

namespace tessera {

namespace {

constexpr double pi = std::numbers::pi;

double above_zero(double x) { return std::max(0.0, x); }
double warmup(const ScheduleOptions& o, int64_t step) { return double(step) / double(std::max<int64_t>(1, o.warmup_steps)); }
double progress(const ScheduleOptions& o, int64_t step) {
  return double(step - o.warmup_steps) / double(std::max<int64_t>(1, o.total_steps - o.warmup_steps));
}

// --- after warm-up: transformers (optimization.py) and their defaults -----------------------------------------------------------------
double constant(const ScheduleOptions&, int64_t) { return 1; }

double linear(const ScheduleOptions& o, int64_t step) {
  return above_zero(double(o.total_steps - step) / double(std::max<int64_t>(1, o.total_steps - o.warmup_steps)));
}

double cosine(const ScheduleOptions& o, int64_t step) { return above_zero(0.5 * (1 + std::cos(pi * 0.5 * 2 * progress(o, step)))); }

double restarts(const ScheduleOptions& o, int64_t step) {
  const double p = progress(o, step);
  return p >= 1 ? 0 : above_zero(0.5 * (1 + std::cos(pi * std::fmod(p, 1.0))));
}

constexpr double end_rate = 1e-7;  // lr_end of polynomial

double towards_end_rate(const ScheduleOptions& o, int64_t step, bool ended) {
  if (end_rate >= o.lr)
    fail("--lr", str(o.lr, " with the schedule polynomial"), str("more than the final rate ", end_rate), "raise --lr or use linear");
  if (ended) return end_rate / o.lr;
  const double remaining = 1 - double(step - o.warmup_steps) / double(o.total_steps - o.warmup_steps);
  return ((o.lr - end_rate) * remaining + end_rate) / o.lr;
}

double polynomial(const ScheduleOptions& o, int64_t step) { return towards_end_rate(o, step, step > o.total_steps); }

double inverse_sqrt(const ScheduleOptions& o, int64_t step) {
  const int64_t timescale = o.warmup_steps ? o.warmup_steps : 10000;
  return 1 / std::sqrt(double(step + timescale - o.warmup_steps) / double(timescale));
}

// --- after warm-up: fsdp_qlora and its fork (lr_scheduler.py) with train.py's defaults ------------------------------------------------
constexpr double floor_rate = 0.1;
constexpr int cycles = 3;

double floor_cosine(const ScheduleOptions& o, int64_t step) {
  return floor_rate + (1 - floor_rate) * 0.5 * (1 + std::cos(pi * progress(o, step)));
}

double floor_restarts(const ScheduleOptions& o, int64_t step) {
  const double p = progress(o, step);
  return p >= 1 ? floor_rate : floor_rate + (1 - floor_rate) * 0.5 * (1 + std::cos(pi * std::fmod(p * cycles, 1.0)));
}

double fork_polynomial(const ScheduleOptions& o, int64_t step) {
  return towards_end_rate(o, step, step >= o.total_steps || o.total_steps == o.warmup_steps);
}

double exponential(const ScheduleOptions& o, int64_t step) { return std::pow(0.99, double(step - o.warmup_steps)); }

// --- the table ------------------------------------------------------------------------------------------------------------------------
using Multiplier = double (*)(const ScheduleOptions&, int64_t step);  // of a step after the warm-up

struct Row {
  const char* name;
  Multiplier transformers, fsdp_qlora;  // null: the dialect has no such schedule
};
constexpr Row rows[] = {
    {"constant", constant, constant},  // transformers ignores the warm-up here
    {"constant_with_warmup", constant, nullptr},
    {"linear", linear, linear},
    {"cosine", cosine, floor_cosine},
    {"cosine_with_restarts", restarts, floor_restarts},
    {"polynomial", polynomial, fork_polynomial},
    {"inverse_sqrt", inverse_sqrt, nullptr},
    {"exponential", nullptr, exponential},
};
// They need values of their own (a floor, a decay length) or an evaluation metric.
constexpr const char* planned[] = {"cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau",
                                   "greedy"};

bool is_fsdp_qlora(const std::string& dialect) { return dialect == "fsdp_qlora"; }

Multiplier find(const std::string& dialect, const std::string& name) {
  std::vector<std::string> allowed;
  for (const Row& row : rows) {
    const Multiplier multiplier = is_fsdp_qlora(dialect) ? row.fsdp_qlora : row.transformers;
    if (!multiplier) continue;
    if (name == row.name) return multiplier;
    allowed.emplace_back(row.name);
  }
  const bool later = std::find(std::begin(planned), std::end(planned), name) != std::end(planned);
  const std::string near = later ? "" : nearest(name, allowed);
  fail("learning-rate schedule", str('"', name, later ? "\" is not supported yet" : "\" is not a schedule of this dialect"),
       join(allowed, ", "), near.empty() ? "name one of these" : str("did you mean ", near, "?"));
}

}  // namespace

int64_t resolve_warmup(const std::string& dialect, const std::string& schedule, double steps, double ratio, int64_t total_steps) {
  const double total = double(total_steps);
  if (is_fsdp_qlora(dialect)) {
    if (steps >= 0 && ratio >= 0)
      fail("warm-up", str("both ", steps, " steps and a ratio of ", ratio), "one of --warmup_steps and --warmup_ratio", "leave one out");
    if (steps >= 0) return int64_t(steps);
    if (ratio >= 0) return int64_t(total * ratio);
    return schedule == "constant" ? 0 : int64_t(total * 0.1);
  }
  if (steps >= 1) return int64_t(steps);
  if (steps > 0) return int64_t(std::ceil(total * steps));
  return ratio > 0 ? int64_t(std::ceil(total * ratio)) : 0;
}

double learning_rate(const ScheduleOptions& options, int64_t step) {
  const Multiplier after = find(options.dialect, options.name);
  const bool flat = options.name == "constant" && !is_fsdp_qlora(options.dialect);
  return options.lr * (step < options.warmup_steps && !flat ? warmup(options, step) : after(options, step));
}

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const Row& row : rows) names.emplace_back(row.name);
  return names;
}

}  // namespace tessera
