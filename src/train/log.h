// TrainLog: what a run tells. A progress line for people; train.jsonl (one JSON object per optimizer step) for programs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "train/progress.h"

namespace tessera {

struct StepRecord {
  int64_t step = 0;          // optimizer steps done, from 1
  double epoch = 0;          // epochs done, with fraction
  double loss = 0;           // mean of -log p over all target tokens of the step
  double learning_rate = 0;  // used by this step
  double grad_norm = 0;      // before clipping
  int64_t tokens = 0;        // input tokens of all ranks, without padding
  int64_t target_tokens = 0;
  double seconds = 0;
  double tokens_per_second = 0;
  size_t memory = 0, memory_peak = 0;  // bytes resident, the largest rank's
  std::string skipped;                 // why the step changed nothing; "" when it did
};

class TrainLog {
 public:
  // folder: where train.jsonl lives; lines of steps after `done` (of a run that is being resumed) are cut off.
  // planned: bytes a rank holds at most, for the progress line; 0: not known.
  TrainLog(const std::string& folder, int64_t total_steps, int64_t done, int64_t logging_steps, size_t planned = 0);
  void step(const StepRecord&);
  void evaluation(int64_t step, double loss,
                  int64_t tokens);          // also a line of train.jsonl: {"step", "eval_loss", "eval_perplexity", "eval_tokens"}
  void saving(int64_t step, double stall);  // a line: {"step", "save_stall_seconds"}: how long training stood still for a checkpoint
  void note(const std::string& line);       // a line that does not break the bar
  double first_loss() const { return first_; }
  double last_loss() const { return last_; }  // mean of the last 30 steps

 private:
  std::string path_;
  int64_t total_, done_, logging_steps_;
  size_t planned_;
  Progress progress_;
  double first_ = 0, last_ = 0;
  std::vector<double> recent_;
};

}  // namespace tessera
