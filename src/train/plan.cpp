#include "train/plan.h"

#include <algorithm>
#include <future>
#include <optional>

#include "backend/dry_backend.h"
#include "backend/profiling_backend.h"
#include "comm/dry_comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "train/checkpoint_writer.h"
#include "train/optimizer.h"

namespace tessera {
namespace {

Batch full_batch(const TrainConfig& c, int64_t rows) {
  const Example row{std::vector<int32_t>(size_t(c.context_length), 0), std::vector<int32_t>(size_t(c.context_length), 0)};
  return collate(std::vector<const Example*>(size_t(rows), &row));
}

double seconds_of(const StepProfile& step, const ProfileLimits& speed) {
  if (speed.bytes == 0) return 0;
  double sum = 0;
  for (const auto& row : step.operations) sum += row.calls * speed.seconds(row.operation);
  return sum / plan_share_of_limit;
}

bool saves(const TrainConfig& c) { return c.save_model || c.save_strategy != "no"; }

// Everything of a run that computes nothing, in the order it is made.
struct DryRun {
  DryRun(const TrainConfig& c, const PlanMachine& m, Keeping keeping, int rank)
      : config(c),
        machine(m),
        profile(rank),
        owned(std::make_unique<DryBackend>(m.gpu())),
        dry(*owned),
        backend(std::move(owned), profile),
        comm(rank, m.ranks, m.nodes, traffic, m.device == "cuda" ? &backend.ledger() : nullptr),
        model(request(keeping), comm, backend),
        optimizer(model.model, model.sharded, backend, {}),
        batch(full_batch(c, c.batch_size)) {
    if (writes_beside(c)) snapshot.emplace(live_state(model, optimizer), model.sharded.units(), backend);
  }
  Plan go();

 private:
  ModelRequest request(Keeping keeping) const;
  void step();
  void count_exchange(double times);

  const TrainConfig& config;
  const PlanMachine& machine;
  Profile profile;
  std::unique_ptr<DryBackend> owned;  // by `backend`, from its making
  const DryBackend& dry;
  ProfilingBackend backend;
  DryTraffic traffic;
  DryComm comm;
  LoadedModel model;
  Optimizer optimizer;
  const Batch batch;
  std::optional<Snapshot> snapshot;
  Charge writing;
  Plan plan;
};

ModelRequest DryRun::request(Keeping keeping) const {
  ModelRequest r = model_request(config);
  r.values = false;
  r.init = "random";
  r.keeping = keeping;
  if (machine.own_memory && !machine.gpu()) r.frozen_place = FrozenPlace::gathered;
  return r;
}

void DryRun::count_exchange(double times) {
  plan.gathered += times * double(traffic.gathered.exchange(0));
  plan.reduced += times * double(traffic.reduced.exchange(0));
}

// A micro-batch, the optimizer, a save when there will be one, and a micro-batch beside it.
void DryRun::step() {
  const ProfileStep one(1);
  model.sharded.zero_gradients();
  traffic.gathered = traffic.reduced = 0;
  model.pass.train(batch, 1);
  model.pass.take_losses();
  count_exchange(1);
  optimizer.step(1, config.lr, 1);
  backend.ledger().enter("save");
  writing = Charge(backend.host_ledger(), "gathered for saving", saves(config) ? gather_bytes(model, comm) : 0);
  if (!snapshot) writing = Charge();  // else what follows is computed meanwhile
  model.pass.train(batch, 1);
  model.pass.take_losses();
  count_exchange(double(config.gradient_accumulation_steps - 1));
}

Plan DryRun::go() {
  step();
  const double to_device = dry.copied_to_device(), to_host = dry.copied_to_host();
  if (!config.eval_dataset.empty()) model.pass.evaluate(batch);
  // Two micro-batches were run; the optimizer's part is small beside them.
  const double scale = double(config.gradient_accumulation_steps) / 2;
  const StepProfile average = profile.average();
  for (const auto& row : average.operations) {
    plan.flops += scale * row.calls * row.operation.flops;
    plan.bytes_moved += scale * row.calls * row.operation.bytes;
  }
  const Keeping kept = model.request.keeping;
  plan.machine = machine;
  plan.layers = int64_t(model.model.layers.size());
  plan.keeping = {std::min(kept.layers, plan.layers), kept.attention};
  plan.parameters = model.config.parameters();
  plan.trains = model.model.trainable_parameters();
  plan.phases = backend.ledger().peaks();
  plan.peak = backend.ledger().peak();
  if (machine.gpu()) plan.host_phases = backend.host_ledger().peaks(), plan.host_peak = backend.host_ledger().peak();
  plan.arena = model.arena.high_water() + (machine.gpu() ? plan_gpu_odd_batches : 0);
  plan.tokens = config.batch_size * config.context_length * config.gradient_accumulation_steps * machine.ranks;
  plan.copied_to_device = scale * to_device, plan.copied_to_host = scale * to_host;
  plan.compute_seconds = plan.step_seconds = scale * seconds_of(average, machine.speed);
  if (machine.bytes_copied > 0)
    plan.step_seconds = std::max(plan.step_seconds, std::max(plan.copied_to_device, plan.copied_to_host) / machine.bytes_copied);
  if (machine.bytes_received > 0)
    plan.step_seconds = std::max(plan.step_seconds, plan.gathered / machine.bytes_received) + plan.reduced / machine.bytes_received;
  return std::move(plan);
}

Plan larger(Plan a, Plan b) { return b.peak > a.peak ? std::move(b) : std::move(a); }

Plan dry_run_of_all(const TrainConfig& c, const PlanMachine& machine, Keeping keeping) {
  Plan first = dry_run(c, machine, keeping, 0);
  return machine.ranks == 1 ? first : larger(std::move(first), dry_run(c, machine, keeping, machine.ranks - 1));
}

}  // namespace

// NCCL takes its buffers later, where there are several GPUs.
size_t Plan::gpu_constant() const {
  if (machine.gpu_overhead == 0) return plan_gpu_constant;
  const size_t measured = machine.gpu_overhead + plan_gpu_loaded_later;
  return machine.ranks > 1 ? std::max(measured, plan_gpu_constant) : measured;
}

void measure_gpu(PlanMachine& m, Backend& backend) {
  constexpr size_t step = size_t(16) << 20;
  const size_t held = backend.overhead().bytes;
  m.gpu_overhead = (held + step - 1) / step * step;
  m.rank_memory = backend.free_memory() + held;
}

PlanMachine this_machine(Comm& comm, Backend& backend) {
  int64_t on_node = 0;
  for (const int64_t node : gather_values(comm, int64_t(comm.node()))) on_node += node == comm.node();
  const auto of_all = [&](size_t mine) { return gather_values(comm, int64_t(mine)); };
  const auto least = [&](size_t mine) {
    const auto all = of_all(mine);
    return size_t(*std::min_element(all.begin(), all.end()));
  };
  PlanMachine m;
  m.ranks = comm.size(), m.nodes = comm.nodes();
  m.own_memory = !backend.host_can_read();
  if (!m.own_memory) {
    m.rank_memory = least(backend.free_memory() / size_t(on_node));
    return m;
  }
  measure_gpu(m, backend);
  m.rank_memory = least(m.rank_memory);
  const auto held = of_all(m.gpu_overhead);
  m.gpu_overhead = *std::min_element(held.begin(), held.end()) ? size_t(*std::max_element(held.begin(), held.end())) : 0;
  m.device = backend.native(Lane::exchange) ? "cuda" : "cuda_host";
  m.host_memory = least(make_backend("cpu", 1)->free_memory());
  return m;
}

// On a thread of its own, where no other profile is current and nothing is said.
Plan dry_run(const TrainConfig& c, const PlanMachine& machine, Keeping keeping, int rank) {
  return std::async(std::launch::async,
                    [&] {
                      set_log_rank(1, 2);
                      return DryRun(c, machine, keeping, rank).go();
                    })
      .get();
}

Plan make_plan(const TrainConfig& c, const PlanMachine& machine) {
  const auto run = [&](Keeping keeping) { return dry_run_of_all(c, machine, keeping); };
  if (c.gradient_checkpointing == "false") return run({Keeping::all_layers, true});
  const int64_t asked = c.keep_layers == "auto" ? -1 : std::stoll(c.keep_layers);
  Plan best = run({0, false});
  if (asked == 0) return best;
  // Whether this much more leaves a fifth free; where addresses are limited (ulimit -v) even a dry run may find no room.
  const auto improves = [&](Keeping keeping) {
    try {
      Plan p = run(keeping);
      if (machine.rank_memory && p.needed() > machine.rank_memory / 5 * 4) return false;
      best = std::move(p);
      return true;
    } catch (const Error&) {
      return false;
    }
  };
  const bool attention = !(machine.gpu() && c.use_activation_cpu_offload) && improves({0, true});
  if (asked > 0) return run({asked, attention});
  if (c.gradient_checkpointing == "true" || improves({best.layers, attention})) return best;
  int64_t fits = 0, fails = best.layers;
  while (fits + 1 < fails) {
    const int64_t middle = (fits + fails) / 2;
    (improves({middle, attention}) ? fits : fails) = middle;
  }
  return best;
}

}  // namespace tessera
