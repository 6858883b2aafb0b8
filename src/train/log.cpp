#include "train/log.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/log.h"
#include "core/text.h"
#include "io/file.h"
#include "io/json.h"

namespace tessera {
namespace {

constexpr size_t recent_steps = 30;

// Keeps the lines up to step `done`: a resumed run writes each step once. A line that a crash has torn is no JSON, and goes.
void cut_after(const std::string& path, int64_t done) {
  if (!file_exists(path)) return;
  if (done == 0) {
    write_file_atomic(path, "");
    return;
  }
  std::string kept;
  for (const std::string& line : split(read_file(path), '\n')) {
    const Json record = Json::parse(line, nullptr, false);
    if (record.is_object() && record.value("step", int64_t(0)) <= done) kept += line + "\n";
  }
  write_file_atomic(path, kept);
}

}  // namespace

TrainLog::TrainLog(const std::string& folder, int64_t total_steps, int64_t done, int64_t logging_steps, size_t planned)
    : path_(folder + "/train.jsonl"),
      total_(total_steps),
      done_(done),
      logging_steps_(std::max<int64_t>(1, logging_steps)),
      planned_(planned),
      progress_("step", total_steps, 0) {
  if (speaks()) cut_after(path_, done);
}

void TrainLog::step(const StepRecord& r) {
  if (!speaks()) return;
  Json line = {{"step", r.step},
               {"epoch", r.epoch},
               {"loss", r.loss},
               {"learning_rate", r.learning_rate},
               {"grad_norm", r.grad_norm},
               {"tokens", r.tokens},
               {"target_tokens", r.target_tokens},
               {"seconds", r.seconds},
               {"tokens_per_second", r.tokens_per_second},
               {"memory", r.memory},
               {"memory_peak", r.memory_peak}};
  if (!r.skipped.empty()) line["skipped"] = true, line["reason"] = r.skipped;
  append_line(path_, line.dump());
  if (!r.skipped.empty()) return note(str("skipped  step ", r.step, ": ", r.skipped));
  if (recent_.empty()) first_ = r.loss;
  recent_.push_back(r.loss);
  const size_t n = std::min(recent_.size(), recent_steps);
  last_ = std::accumulate(recent_.end() - std::ptrdiff_t(n), recent_.end(), 0.0) / double(n);
  if (!progress_.terminal() && r.step % logging_steps_ && r.step != total_) return;
  const double left = progress_.seconds() / double(r.step - done_) * double(total_ - r.step);
  progress_.at(r.step, str("loss ", fixed(r.loss, 4), "  lr ", significant(r.learning_rate, 4), "  norm ", fixed(r.grad_norm, 3), "  ",
                           human_count(r.tokens_per_second), " tok/s  mem ", human_bytes(r.memory),
                           planned_ ? str(" of ", human_bytes(planned_)) : "", " (peak ", human_bytes(r.memory_peak), ")  left ",
                           human_seconds(left)));
}

void TrainLog::evaluation(int64_t step, double loss, int64_t tokens) {
  if (!speaks()) return;
  const Json line = {{"step", step}, {"eval_loss", loss}, {"eval_perplexity", std::exp(loss)}, {"eval_tokens", tokens}};
  append_line(path_, line.dump());
  note(str("step ", step, "  eval loss ", fixed(loss, 4), "  perplexity ", fixed(std::exp(loss), 3), "  (", tokens, " tokens)"));
}

void TrainLog::saving(int64_t step, double stall) {
  if (speaks()) append_line(path_, Json({{"step", step}, {"save_stall_seconds", stall}}).dump());
}

void TrainLog::note(const std::string& line) {
  progress_.clear();
  say(line);
}

}  // namespace tessera
