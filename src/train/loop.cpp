#include "train/loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>

#include "backend/profiling_backend.h"
#include "comm/profiling_comm.h"
#include "core/activity.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "io/file.h"
#include "optim/schedule.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/log.h"
#include "train/output.h"
#include "train/plan.h"
#include "train/profile_output.h"

namespace tessera {
namespace {

std::atomic<bool> stop_requested{false};

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

size_t largest(Comm& comm, size_t mine) {
  const auto all = gather_values(comm, int64_t(mine));
  return size_t(*std::max_element(all.begin(), all.end()));
}

OptimizerOptions optimizer_options(const TrainConfig& c) {
  OptimizerOptions o;
  o.beta1 = c.adam_beta1, o.beta2 = c.adam_beta2, o.eps = c.adam_epsilon, o.weight_decay = c.weight_decay;
  o.decay_norms_and_biases = c.defaults == "fsdp_qlora";
  o.max_grad_norm = c.max_grad_norm;
  return o;
}

int64_t total_steps(const TrainConfig& c, const Loader& loader) {
  if (c.max_steps > 0) return c.max_steps;
  return std::max<int64_t>(1, int64_t(std::ceil(c.num_epochs * double(loader.steps_per_epoch()) - 1e-9)));
}

ScheduleOptions schedule_options(const TrainConfig& c, int64_t steps) {
  return {c.lr_scheduler, c.defaults, c.lr, steps, resolve_warmup(c.defaults, c.lr_scheduler, c.warmup_steps, c.warmup_ratio, steps)};
}

// Everything of one run, in the order it is made.
struct Run {
  Run(const TrainConfig& c, Comm& comm);
  TrainResult go(const std::function<void()>& on_start);

 private:
  StepRecord step(int64_t number);
  void evaluate_now(int64_t done);
  void save(int64_t done);
  bool stopping();
  std::map<std::string, std::string> identity() const;

  TrainConfig config_;
  Comm& comm_;
  std::unique_ptr<Backend> backend_;
  std::optional<Tokenizer> tokenizer_;
  ModelConfig model_config_;
  Dataset data_;
  std::optional<Dataset> eval_data_;
  Loader loader_;
  int64_t total_;
  ScheduleOptions schedule_;
  std::string resumed_;
  std::unique_ptr<LoadedModel> model_;
  std::optional<Optimizer> optimizer_;
  std::optional<TrainLog> log_;
  int64_t done_ = 0, skipped_ = 0;
  size_t planned_ = 0;  // bytes of a rank at most
};

std::optional<Tokenizer> load_tokenizer(const std::string& folder) {
  if (!Tokenizer::present(folder)) return std::nullopt;
  return Tokenizer::load(folder);
}

Dataset load_rows(const TrainConfig& c, const std::string& dataset, const std::optional<Tokenizer>& tokenizer, const ModelConfig& model) {
  const Doing reading(Activity::reading_data);
  return Dataset::load(dataset_options(c, dataset), tokenizer ? &*tokenizer : nullptr, int32_t(model.vocab));
}

// What a run reads must not be what it writes.
void check_output_folder(const TrainConfig& c) {
  for (const std::string& input : {c.model, c.adapter_init}) {
    if (input.empty() || !same_folder(input, c.output_dir)) continue;
    fail(str("--output_dir ", c.output_dir), "is a folder this run reads", "another folder", "choose one, so that nothing is written over");
  }
}

Run::Run(const TrainConfig& c, Comm& comm)
    : config_(c),
      comm_(comm),
      backend_(profiled(make_backend(c.device, rank_threads(c.device, c.threads, comm)))),
      tokenizer_(load_tokenizer(c.model)),
      model_config_(read_model_config(c.model)),
      data_(load_rows(c, c.dataset, tokenizer_, model_config_)),
      loader_(data_, {c.batch_size, comm.size() * c.gradient_accumulation_steps, c.seed, c.shuffle}),
      total_(total_steps(c, loader_)),
      schedule_(schedule_options(c, total_)),
      resumed_(find_checkpoint(c.resume_from_checkpoint, c.output_dir, comm)) {
  report_rows(data_, "data ");
  if (!c.eval_dataset.empty()) {
    eval_data_ = load_rows(c, c.eval_dataset, tokenizer_, model_config_);
    report_rows(*eval_data_, "eval ");
  }
  if (c.context_length > model_config_.max_positions)
    warn(str("--context_length ", c.context_length, " is beyond max_position_embeddings ", model_config_.max_positions, " of the model"));
  check_output_folder(c);
  ModelRequest request = model_request(c);
  if (!resumed_.empty()) {
    const CheckpointState state = read_checkpoint_state(resumed_);
    check_same_run(state, identity(), resumed_);
    start_from_checkpoint(request, resumed_);
    loader_.resume(state.loader);
    done_ = state.step;
    skipped_ = state.skipped_steps;
  }
  PlanMachine machine = this_machine(comm, *backend_);
  machine.rows = bytes_of_rows(int64_t(data_.size()), data_.report().tokens);
  const Plan plan = make_plan(c, machine);
  say(plan_line(plan));
  if (!c.force) refuse_unfitting(c, plan);
  request.keeping = plan.keeping;
  planned_ = plan.needed();
  if (comm.rank() == 0) {
    make_folder(c.output_dir);
    clear_later_checkpoints(c.output_dir, done_);
    write_file_atomic(c.output_dir + "/plan.json", plan_json(c, plan));
  }
  comm.barrier();
  model_ = std::make_unique<LoadedModel>(request, comm_, *backend_);
  optimizer_.emplace(model_->model, model_->sharded, *backend_, optimizer_options(c));
  if (!resumed_.empty()) load_optimizer(*model_, *optimizer_, resumed_);
}

std::map<std::string, std::string> Run::identity() const {
  return run_identity(config_, {comm_.size() * config_.gradient_accumulation_steps, total_, schedule_.warmup_steps}, data_);
}

StepRecord Run::step(int64_t number) {
  const ProfileStep profile(number);
  const auto start = std::chrono::steady_clock::now();
  const auto batches = loader_.next(comm_.rank(), comm_.size());
  int64_t targets = 0, inputs = 0;
  for (const Batch& b : batches) targets += b.target_tokens, inputs += b.input_tokens;
  StepRecord r;
  r.step = number;
  r.target_tokens = sum_of(comm_, targets);
  r.tokens = sum_of(comm_, inputs);
  model_->sharded.zero_gradients();
  double sum = 0;
  for (const Batch& b : batches) {
    const double loss = model_->pass.train(b, r.target_tokens ? float(1.0 / double(r.target_tokens)) : 0);
    for (const double of_rank : gather_values(comm_, loss)) sum += of_rank;
  }
  r.loss = r.target_tokens ? sum / double(r.target_tokens) : 0;
  r.grad_norm = in_phase(Phase::optimizer, [&] { return optimizer_->gradient_norm(); });
  r.learning_rate = learning_rate(schedule_, number - 1);
  in_phase(Phase::optimizer, [&] { optimizer_->step(number, r.learning_rate, float(r.grad_norm)); });
  r.epoch = double(loader_.state().epoch) + double(loader_.state().window) / double(loader_.steps_per_epoch());
  r.seconds = seconds_since(start);
  r.tokens_per_second = double(r.tokens) / r.seconds;
  r.memory = largest(comm_, resident_bytes());
  r.memory_peak = largest(comm_, peak_resident_bytes());
  return r;
}

void Run::evaluate_now(int64_t done) {
  if (!eval_data_) return;
  const Doing evaluating(Activity::evaluating);
  const Evaluation e = evaluate(model_->pass, comm_, *eval_data_, config_.batch_size, false);
  log_->evaluation(done, e.loss, e.tokens);
}

void Run::save(int64_t done) {
  const Doing saving(Activity::saving);
  const std::string folder =
      save_checkpoint(*model_, *optimizer_, {done, loader_.state(), identity(), skipped_}, config_.output_dir, config_.save_total_limit);
  log_->note(str("saved    ", folder, " (values, optimizer, place in the data; verified)"));
}

bool Run::stopping() { return sum_of(comm_, stop_requested.load() ? 1 : 0) > 0; }

TrainResult Run::go(const std::function<void()>& on_start) {
  const TrainConfig& c = config_;
  const Model& m = model_->model;
  const int64_t trains = m.trainable_parameters();
  say(str("model    ", m.config.model_type, " ", human_count(double(m.config.parameters())), " parameters, ", c.train_type, ", ",
          c.precision, ", trains ", trains, " values (",
          fixed(100.0 * double(trains) / double(m.config.parameters() + (m.options.train_base ? 0 : trains)), 3), " %)"));
  if (!c.adapter_init.empty() && resumed_.empty())
    say(str("adapter  ", c.adapter_init, ": rank ", model_->peft.rank, ", alpha ", model_->peft.alpha,
            ", and its own targets; --lora_rank, --lora_alpha, --lora_target_modules are for new adapters"));
  say(str("ranks    ", comm_.describe(), "; ", backend_->describe(), "; ", c.sharding_strategy));
  say(str("steps    ", total_, " of ", c.batch_size, " rows x ", c.gradient_accumulation_steps, " micro-batches x ", comm_.size(),
          " ranks, ", loader_.steps_per_epoch(), " to an epoch; ", c.lr_scheduler, " to lr ", c.lr, ", ", schedule_.warmup_steps,
          " steps of warm-up"));
  if (!resumed_.empty()) say(str("resumed  ", resumed_, " after step ", done_));
  if (comm_.rank() == 0 && on_start) on_start();
  comm_.barrier();
  log_.emplace(c.output_dir, total_, done_, c.logging_steps, planned_);

  const Doing training(Activity::training);
  TrainResult result;
  int64_t saved_at = -1;
  while (done_ < total_ && !result.interrupted) {
    log_->step(step(++done_));
    if (c.eval_steps > 0 && done_ % c.eval_steps == 0 && done_ < total_) evaluate_now(done_);
    if (c.save_steps > 0 && done_ % c.save_steps == 0) save(saved_at = done_);
    result.interrupted = done_ < total_ && stopping();
  }
  if (result.interrupted) {
    if (saved_at != done_) save(done_);
  } else {
    evaluate_now(done_);
    if (c.save_model) result.saved = c.output_dir;
  }
  result.steps = done_;
  result.first_loss = log_->first_loss(), result.last_loss = log_->last_loss();
  if (result.saved.empty()) return result;
  const Doing saving(Activity::saving);
  const TrainType& type = find_train_type(c.train_type);
  if (type.adapter) {
    write_adapter(*model_, c.output_dir, type.fsdp_qlora_file);
  } else {
    write_model(*model_, c.output_dir, model_->request.compute);
  }
  if (comm_.rank() == 0 && type.adapter) copy_tokenizer(c.model, c.output_dir);
  return result;
}

}  // namespace

void request_stop() { stop_requested = true; }

TrainResult train(const TrainConfig& c, Comm& comm, const std::function<void()>& on_start) {
  set_log_rank(comm.rank(), comm.size());
  const Doing loading(Activity::loading);
  if (!c.profile) return Run(c, comm).go(on_start);
  Profile profile(comm.rank());
  ProfilingComm profiling(comm, profile);
  const TrainResult result = Run(c, profiling).go(on_start);
  report_profile(profile, comm, c.output_dir);
  return result;
}

}  // namespace tessera
