#include "train/loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <optional>

#include "backend/profiling_backend.h"
#include "comm/profiling_comm.h"
#include "comm/rank_device.h"
#include "core/activity.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "io/file.h"
#include "optim/schedule.h"
#include "train/checkpoint.h"
#include "train/checkpoint_facts.h"
#include "train/checkpoint_writer.h"
#include "train/evaluate.h"
#include "train/log.h"
#include "train/nonfinite.h"
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

// Of all micro-batches of a step, in their order. Every rank has the same number of them.
std::vector<double> gather_losses(Comm& comm, const std::vector<double>& mine) {
  const size_t ranks = size_t(comm.size()), bytes = mine.size() * sizeof(double);
  std::vector<double> by_rank(ranks * mine.size()), out;
  std::vector<Range> parts;
  for (size_t r = 0; r < ranks; ++r) parts.push_back({r * bytes, (r + 1) * bytes});
  std::copy(mine.begin(), mine.end(), by_rank.begin() + std::ptrdiff_t(size_t(comm.rank()) * mine.size()));
  comm.all_gather(reinterpret_cast<std::byte*>(by_rank.data()), parts);
  for (size_t i = 0; i < mine.size(); ++i)
    for (size_t r = 0; r < ranks; ++r) out.push_back(by_rank[r * mine.size() + i]);
  return out;
}

// On another number of ranks a resumed run keeps the micro-batches of a step.
TrainConfig resolved(TrainConfig c, const std::optional<Resumed>& resumed, int ranks) {
  if (resumed) c.gradient_accumulation_steps = accumulation_steps(*resumed, c.gradient_accumulation_steps, ranks);
  return c;
}

std::unique_ptr<Backend> make_device(const TrainConfig& c, Comm& comm, const MakeBackend& make) {
  const int threads = rank_threads(c.device, c.threads, comm);
  return make ? make(c.device, threads) : make_backend(rank_device(c.device, comm), threads);
}

// Everything of one run, in the order it is made.
struct Run {
  Run(const TrainConfig& c, Comm& comm, const ProgramFacts& program, const MakeBackend& make);
  TrainResult go(const std::function<void()>& on_start);

 private:
  void start_where_it_stood(ModelRequest&);
  CheckpointManifest facts(const ProgramFacts&) const;
  void describe() const;
  std::optional<StepRecord> step(int64_t number);
  void stop_if_asked();
  std::string skip(const NonfiniteStep&);
  double evaluate_now(int64_t done);
  bool due(const std::string& strategy, int64_t steps) const;
  void after_step();
  void save();
  void report_save();
  void write_result(TrainResult&);

  std::optional<Resumed> resumed_;
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
  CheckpointManifest facts_;  // of every checkpoint of this run; its place changes
  std::unique_ptr<LoadedModel> model_;
  std::optional<Optimizer> optimizer_;
  std::optional<TrainLog> log_;
  std::optional<CheckpointWriter> writer_;
  int64_t done_ = 0;
  int64_t saved_at_ = -1;  // step of the newest checkpoint of this run
  bool stopping_ = false;  // all ranks know
  size_t planned_ = 0;     // bytes of a rank at most
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

// The best model is chosen among checkpoints: each needs a loss of its own.
void check_saving(const TrainConfig& c) {
  if (!c.load_best_model_at_end) return;
  const std::string where = "--load_best_model_at_end";
  if (c.eval_dataset.empty()) fail(where, "there are no rows to evaluate on", "evaluation at every save", "add --eval_dataset FILE");
  if (c.save_strategy == "no" || (c.save_strategy == "steps" && c.save_steps == 0))
    fail(where, "no checkpoints are saved", "checkpoints to choose from", "add --save_strategy epoch, or --save_steps N");
  const std::string evaluates = c.eval_strategy == "auto" ? "steps" : c.eval_strategy;
  if (c.save_strategy != evaluates)
    fail(where, str("--save_strategy ", c.save_strategy, " beside --eval_strategy ", c.eval_strategy), "evaluation at every save",
         str("set --eval_strategy ", c.save_strategy));
  if (c.save_strategy == "steps" && (c.eval_steps == 0 || c.save_steps % c.eval_steps != 0))
    fail(where, str("--save_steps ", c.save_steps, " beside --eval_steps ", c.eval_steps), "save_steps that are a multiple of eval_steps",
         str("set --eval_steps ", c.save_steps));
}

// Where --device auto has found no GPU; with --device cpu the command line has said so.
void note_offload(const TrainConfig& c, const Backend& backend) {
  if (c.device == "auto" && backend.host_can_read() && (c.use_cpu_offload || c.use_activation_cpu_offload || c.optimizer_offload))
    say("offload  has no effect on a CPU: all numbers live on the host");
}

Run::Run(const TrainConfig& c, Comm& comm, const ProgramFacts& program, const MakeBackend& make)
    : resumed_(find_checkpoint(c.resume_from_checkpoint, c.output_dir, comm)),
      config_(resolved(c, resumed_, comm.size())),
      comm_(comm),
      backend_(profiled(make_device(c, comm, make))),
      tokenizer_(load_tokenizer(c.model)),
      model_config_(read_model_config(c.model)),
      data_(load_rows(c, c.dataset, tokenizer_, model_config_)),
      loader_(data_, {c.batch_size, comm.size() * config_.gradient_accumulation_steps, c.seed, c.shuffle}),
      total_(total_steps(c, loader_)),
      schedule_(schedule_options(c, total_)) {
  note_offload(c, *backend_);
  report_rows(data_, "data ");
  if (!c.eval_dataset.empty()) {
    eval_data_ = load_rows(c, c.eval_dataset, tokenizer_, model_config_);
    report_rows(*eval_data_, "eval ");
  }
  if (c.context_length > model_config_.max_positions)
    warn(str("--context_length ", c.context_length, " is beyond max_position_embeddings ", model_config_.max_positions, " of the model"));
  check_output_folder(c);
  check_saving(c);
  facts_ = facts(program);
  ModelRequest request = model_request(config_);
  if (resumed_) start_where_it_stood(request);
  PlanMachine machine = this_machine(comm, *backend_);
  machine.rows = bytes_of_rows(int64_t(data_.size()), data_.report().tokens);
  Plan plan = make_plan(config_, machine);
  say(plan_line(plan));
  if (!c.force) refuse_unfitting(config_, plan);
  request.keeping = plan.keeping;
  if (!backend_->host_can_read()) request.arena_bytes = plan.arena;
  planned_ = plan.needed();
  if (comm.rank() == 0) {
    make_folder(c.output_dir);
    clear_later_checkpoints(c.output_dir, resumed_);
    clear_later_nonfinite(c.output_dir, done_);
  }
  comm.barrier();
  model_ = std::make_unique<LoadedModel>(request, comm_, *backend_);
  optimizer_.emplace(model_->model, model_->sharded, *backend_, optimizer_options(c));
  if (resumed_) load_state(*model_, &*optimizer_, resumed_->folder);
  writer_.emplace(*model_, *optimizer_, SaveOptions{c.output_dir, c.save_total_limit, c.output_dir + "/train.jsonl"}, writes_beside(c));
  hold_to_constant(plan, comm, *backend_);
  if (comm.rank() == 0) write_file_atomic(c.output_dir + "/plan.json", plan_json(config_, plan));
}

// Hashes are known to rank 0 alone: it writes and it compares.
CheckpointManifest Run::facts(const ProgramFacts& program) const {
  CheckpointManifest m;
  m.program = program.program;
  m.sharded = config_.fsdp_state_dict_type == state_dict_kind(true);
  m.ranks = comm_.size();
  m.micro_batches = comm_.size() * config_.gradient_accumulation_steps;
  m.seed = config_.seed;
  m.strategy = config_.sharding_strategy;
  m.train_type = config_.train_type;
  m.model = std::filesystem::absolute(config_.model).lexically_normal().string();
  m.run = run_identity(config_, {m.micro_batches, total_, schedule_.warmup_steps}, data_);
  m.configuration = program.configuration;
  if (comm_.rank() != 0) return m;
  m.base_files = base_files(config_);
  m.data_files = data_files(data_, eval_data_ ? &*eval_data_ : nullptr);
  return m;
}

void Run::start_where_it_stood(ModelRequest& request) {
  const CheckpointManifest& then = resumed_->manifest;
  if (comm_.rank() == 0) {
    facts_.epoch_order_sha256 = epoch_order_sha256(config_, data_.size(), then.epoch);
    check_same_run(then, facts_, resumed_->folder);
  }
  start_from_checkpoint(request, resumed_->folder);
  loader_.resume({then.epoch, then.window});
  done_ = then.step;
  facts_.epoch = then.epoch;
  facts_.skipped_steps = then.skipped_steps;
  if (!same_folder(parent_folder(resumed_->folder), config_.output_dir)) return;
  saved_at_ = done_;
  facts_.best_step = then.best_step;
  facts_.best_eval_loss = then.best_eval_loss;
}

// The host's exchange: it waits for no device.
void Run::stop_if_asked() { stopping_ = sum_of(comm_, int64_t(stop_requested.load())) > 0 || stopping_; }

// Nothing when the run was asked to stop in the middle of the step: then values and place in the data are those before it.
std::optional<StepRecord> Run::step(int64_t number) {
  const ProfileStep profile(number);
  const auto start = std::chrono::steady_clock::now();
  const LoaderState before = loader_.state();
  const auto batches = loader_.next(comm_.rank(), comm_.size());
  int64_t targets = 0, inputs = 0;
  for (const Batch& b : batches) targets += b.target_tokens, inputs += b.input_tokens;
  StepRecord r;
  r.step = number;
  r.target_tokens = sum_of(comm_, targets);
  r.tokens = sum_of(comm_, inputs);
  model_->sharded.zero_gradients();
  for (size_t i = 0; i < batches.size(); ++i) {
    model_->pass.train(batches[i], r.target_tokens ? float(1.0 / double(r.target_tokens)) : 0);
    stop_if_asked();
    if (!stopping_ || i + 1 == batches.size()) continue;
    loader_.resume(before);
    return std::nullopt;
  }
  r.grad_norm = in_phase(Phase::optimizer, [&] { return optimizer_->gradient_norm(); });
  const std::vector<double> losses = gather_losses(comm_, model_->pass.take_losses());
  const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
  r.loss = r.target_tokens ? sum / double(r.target_tokens) : 0;
  r.learning_rate = learning_rate(schedule_, number - 1);
  if (std::isfinite(sum) && std::isfinite(r.grad_norm))
    in_phase(Phase::optimizer, [&] { optimizer_->step(number - facts_.skipped_steps, r.learning_rate, float(r.grad_norm)); });
  else
    r.skipped = skip({number, before, batches, losses, data_.path().empty() ? "the data" : data_.path()});
  r.epoch = double(loader_.state().epoch) + double(loader_.state().window) / double(loader_.steps_per_epoch());
  r.seconds = seconds_since(start);
  r.tokens_per_second = double(r.tokens) / r.seconds;
  const bool on_device = !backend_->host_can_read();
  r.memory = largest(comm_, on_device ? backend_->ledger().used() : resident_bytes());
  r.memory_peak = largest(comm_, on_device ? backend_->ledger().peak() : peak_resident_bytes());
  return r;
}

// What is being saved is complete before the run may end; and a run that ends here keeps what it has learned: values and optimizer are
// those before the step.
std::string Run::skip(const NonfiniteStep& step) {
  report_save();
  const bool stops = facts_.skipped_steps >= config_.max_skipped_steps;
  if (stops && done_ > 0 && saved_at_ != done_ && trained_values_finite(*model_)) {
    loader_.resume(step.place);
    save();
    report_save();
  }
  const std::string reason = skip_or_stop(*model_, step, facts_.skipped_steps, config_);
  ++facts_.skipped_steps;
  return reason;
}

double Run::evaluate_now(int64_t done) {
  if (!eval_data_) return 0;
  const Doing evaluating(Activity::evaluating);
  const Evaluation e = evaluate(model_->pass, comm_, *eval_data_, config_.batch_size, false);
  log_->evaluation(done, e.loss, e.tokens);
  return e.loss;
}

bool Run::due(const std::string& strategy, int64_t steps) const {
  if (strategy == "epoch") return loader_.state().window == 0;
  return strategy != "no" && steps > 0 && done_ % steps == 0;
}

// Evaluation comes before the checkpoint: a run that goes on from there has it in its log.
void Run::after_step() {
  const TrainConfig& c = config_;
  const bool last = done_ == total_;
  const bool saves = due(c.save_strategy, c.save_steps) || (last && c.load_best_model_at_end);
  const double loss = last || due(c.eval_strategy, c.eval_steps) ? evaluate_now(done_) : 0;
  if (saves && c.load_best_model_at_end && (facts_.best_step < 0 || loss < facts_.best_eval_loss))
    facts_.best_step = done_, facts_.best_eval_loss = loss;
  if (saves) save();
}

void Run::save() {
  check_values_finite(*model_, done_);
  const Doing saving(Activity::saving);
  backend_->ledger().enter("save");
  const auto start = std::chrono::steady_clock::now();
  report_save();
  CheckpointManifest& m = facts_;
  const LoaderState place = loader_.state();
  if (comm_.rank() == 0 && (m.epoch_order_sha256.empty() || m.epoch != place.epoch))
    m.epoch_order_sha256 = epoch_order_sha256(config_, data_.size(), place.epoch);
  m.step = done_;
  m.epoch = place.epoch, m.window = place.window;
  writer_->save(m);
  saved_at_ = done_;
  log_->saving(done_, seconds_since(start));
}

// Waits for the save in flight. All ranks see the same error.
void Run::report_save() {
  const auto save = writer_->finish();
  if (!save) return;
  if (save->error.empty()) {
    log_->note(
        str("saved    ", save->folder, " (values, optimizer, place in the data; verified; written in ", fixed(save->seconds, 2), " s)"));
  } else if (config_.on_save_error == "continue") {
    saved_at_ = -1;
    if (facts_.best_step == save->step) facts_.best_step = -1;  // the next one that is written is the best so far
    warn(str("the checkpoint of step ", save->step, " could not be written, training goes on without it (--on_save_error continue)\n",
             save->error));
  } else {
    throw Error(str("the checkpoint of step ", save->step, " could not be written (--on_save_error stop)\n", save->error));
  }
}

void Run::describe() const {
  const TrainConfig& c = config_;
  const Model& m = model_->model;
  const int64_t trains = m.trainable_parameters();
  say(str("model    ", m.config.model_type, " ", human_count(double(m.config.parameters())), " parameters, ", c.train_type, ", ",
          c.precision, ", trains ", trains, " values (",
          fixed(100.0 * double(trains) / double(m.config.parameters() + (m.options.train_base ? 0 : trains)), 3), " %)"));
  if (!c.adapter_init.empty() && !resumed_)
    say(str("adapter  ", c.adapter_init, ": rank ", model_->peft.rank, ", alpha ", model_->peft.alpha,
            ", and its own targets; --lora_rank, --lora_alpha, --lora_target_modules are for new adapters"));
  say(str("ranks    ", (model_->device_comm ? *model_->device_comm : comm_).describe(), "; ", backend_->describe(), "; ",
          c.sharding_strategy));
  say(str("steps    ", total_, " of ", c.batch_size, " rows x ", c.gradient_accumulation_steps, " micro-batches x ", comm_.size(),
          " ranks, ", loader_.steps_per_epoch(), " to an epoch; ", c.lr_scheduler, " to lr ", c.lr, ", ", schedule_.warmup_steps,
          " steps of warm-up"));
  if (resumed_) say(str("resumed  ", resumed_->folder, " after step ", done_));
}

TrainResult Run::go(const std::function<void()>& on_start) {
  describe();
  if (comm_.rank() == 0 && on_start) on_start();
  comm_.barrier();
  log_.emplace(config_.output_dir, total_, done_, config_.logging_steps, planned_);
  const Doing training(Activity::training);
  while (done_ < total_ && !stopping_) {
    const std::optional<StepRecord> record = step(done_ + 1);
    if (!record) break;
    log_->step(*record);
    ++done_;
    after_step();
    if (writer_->written()) report_save();
  }
  TrainResult result;
  result.interrupted = done_ < total_;
  result.steps = done_;
  result.first_loss = log_->first_loss(), result.last_loss = log_->last_loss();
  if (result.interrupted) {
    report_save();
    if (saved_at_ != done_) save();
    report_save();
    stop_requested = false;
    return result;
  }
  write_result(result);
  report_save();
  return result;
}

// With --load_best_model_at_end from the best checkpoint, which then has to be on the disk.
void Run::write_result(TrainResult& result) {
  const TrainConfig& c = config_;
  if (c.load_best_model_at_end && facts_.best_step >= 0) {
    report_save();
    const std::string best = str(c.output_dir, "/checkpoint-", facts_.best_step);
    load_state(*model_, nullptr, best);
    say(str("best     ", best, ", eval_loss ", fixed(facts_.best_eval_loss, 4)));
  }
  if (!c.save_model) return;
  check_values_finite(*model_, done_);
  const Doing saving(Activity::saving);
  result.saved = c.output_dir;
  const TrainType& type = find_train_type(c.train_type);
  const OutputSource from = masters_of(*model_);
  if (type.adapter) {
    write_adapter(from, c.output_dir, type.fsdp_qlora_file);
  } else {
    write_model(from, c.output_dir, model_->request.compute);
  }
  if (comm_.rank() == 0 && type.adapter) copy_tokenizer(c.model, c.output_dir);
  comm_.barrier();
}

}  // namespace

void request_stop() { stop_requested = true; }

TrainResult train(const TrainConfig& c, Comm& comm, const std::function<void()>& on_start, const ProgramFacts& program,
                  const MakeBackend& make) {
  set_log_rank(comm.rank(), comm.size());
  const Doing loading(Activity::loading);
  if (!c.profile) return Run(c, comm, program, make).go(on_start);
  Profile profile(comm.rank());
  ProfilingComm profiling(comm, profile);
  const TrainResult result = Run(c, profiling, program, make).go(on_start);
  report_profile(profile, comm, c.output_dir);
  return result;
}

}  // namespace tessera
