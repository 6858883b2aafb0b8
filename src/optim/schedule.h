// Learning-rate schedules: a table of names to multipliers of the base rate. Formulas of transformers (get_scheduler) and of fsdp_qlora,
// in double; golden: golden/train/schedules.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace tessera {

struct ScheduleOptions {
  std::string name = "cosine";  // constant, constant_with_warmup, linear, cosine, ...
  std::string dialect =
      "tessera";  // "tessera" and "trl": transformers' formulas; "fsdp_qlora": its own (cosine with floor 0.1, 10 % warm-up)
  double lr = 0;
  int64_t total_steps = 0;
  int64_t warmup_steps = 0;  // resolved from steps or ratio by resolve_warmup
};

// Warm-up steps from --warmup_steps (>= 1: steps; in (0, 1): a ratio) and --warmup_ratio, as transformers: steps win, ceil(total * ratio);
// fsdp_qlora: int(total * 0.1) unless constant. `steps` < 0 and `ratio` < 0 mean "not given".
int64_t resolve_warmup(const std::string& dialect, const std::string& schedule, double steps, double ratio, int64_t total_steps);

double learning_rate(const ScheduleOptions&, int64_t step);  // the rate that optimizer step `step` (from 0) uses
std::vector<std::string> schedule_names();

}  // namespace tessera
