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

// What a step of this many micro-batches costs, from steps with one and with two.
struct StepCost {
  double flops = 0, bytes = 0, seconds = 0, gathered = 0, reduced = 0;
};

bool saves(const TrainConfig& c) { return c.save_model || c.save_strategy != "no"; }

Plan dry_run_here(const TrainConfig& c, const PlanMachine& machine, Keeping keeping, int rank) {
  set_log_rank(1, 2);  // says nothing
  Profile profile(rank);
  ProfilingBackend backend(std::make_unique<DryBackend>(), profile);
  DryTraffic traffic;
  DryComm comm(rank, machine.ranks, machine.nodes, traffic);
  ModelRequest request = model_request(c);
  request.values = false;
  request.init = "random";
  request.keeping = keeping;
  if (machine.own_memory) request.frozen_place = FrozenPlace::gathered;
  LoadedModel m(request, comm, backend);
  Optimizer optimizer(m.model, m.sharded, backend, {});
  traffic.gathered = traffic.reduced = 0;

  const Batch batch = full_batch(c, c.batch_size);
  const auto micro_batch = [&] {
    m.pass.train(batch, 1);
    return StepCost{0, 0, 0, double(traffic.gathered.exchange(0)), double(traffic.reduced.exchange(0))};
  };
  Plan plan;
  std::optional<Snapshot> snapshot;
  Charge gathered;
  {
    const ProfileStep step(1);
    m.sharded.zero_gradients();
    const StepCost first = micro_batch();
    optimizer.step(1, c.lr, 1);
    backend.ledger().enter("save");
    if (writes_beside(c)) snapshot.emplace(live_state(m, optimizer), m.sharded.units(), backend);
    gathered = Charge(backend.ledger(), "gathered for saving", saves(c) ? gather_bytes(m, comm) : 0);
    if (!snapshot) gathered = Charge();  // else the next step is computed meanwhile
    const StepCost later = micro_batch();
    const double more = double(c.gradient_accumulation_steps - 1);
    plan.gathered = first.gathered + more * later.gathered;
    plan.reduced = first.reduced + more * later.reduced;
  }
  if (!c.eval_dataset.empty()) m.pass.evaluate(batch);
  const StepProfile step = profile.average();
  for (const auto& row : step.operations) {
    plan.flops += row.calls * row.operation.flops;
    plan.bytes_moved += row.calls * row.operation.bytes;
  }
  // Two micro-batches were run; the optimizer's part is small beside them.
  const double scale = double(c.gradient_accumulation_steps) / 2;
  plan.flops *= scale, plan.bytes_moved *= scale;
  plan.machine = machine;
  plan.keeping = {std::min<int64_t>(keeping.layers, int64_t(m.model.layers.size())), keeping.attention};
  plan.layers = int64_t(m.model.layers.size());
  plan.parameters = m.config.parameters();
  plan.trains = m.model.trainable_parameters();
  plan.phases = backend.ledger().peaks();
  plan.peak = backend.ledger().peak();
  plan.tokens = c.batch_size * c.context_length * c.gradient_accumulation_steps * machine.ranks;
  plan.compute_seconds = seconds_of(step, machine.speed) * scale;
  plan.step_seconds = plan.compute_seconds;
  if (machine.bytes_received > 0)
    plan.step_seconds = std::max(plan.compute_seconds, plan.gathered / machine.bytes_received) + plan.reduced / machine.bytes_received;
  return plan;
}

Plan larger(Plan a, Plan b) { return b.peak > a.peak ? std::move(b) : std::move(a); }

Plan dry_run_of_all(const TrainConfig& c, const PlanMachine& machine, Keeping keeping) {
  Plan first = dry_run(c, machine, keeping, 0);
  return machine.ranks == 1 ? first : larger(std::move(first), dry_run(c, machine, keeping, machine.ranks - 1));
}

}  // namespace

PlanMachine this_machine(Comm& comm, const Backend& backend) {
  int64_t on_node = 0;
  for (const int64_t node : gather_values(comm, int64_t(comm.node()))) on_node += node == comm.node();
  const auto mine = gather_values(comm, int64_t(backend.free_memory()) / on_node);
  PlanMachine m;
  m.ranks = comm.size(), m.nodes = comm.nodes();
  m.rank_memory = size_t(*std::min_element(mine.begin(), mine.end()));
  return m;
}

// On a thread of its own, where no other profile is current and nothing is said.
Plan dry_run(const TrainConfig& c, const PlanMachine& machine, Keeping keeping, int rank) {
  return std::async(std::launch::async, [&] { return dry_run_here(c, machine, keeping, rank); }).get();
}

Plan make_plan(const TrainConfig& c, const PlanMachine& machine) {
  const auto run = [&](Keeping keeping) { return dry_run_of_all(c, machine, keeping); };
  const auto roomy = [&](const Plan& p) { return machine.rank_memory == 0 || p.needed() <= machine.rank_memory / 5 * 4; };
  if (c.gradient_checkpointing == "false") return run({Keeping::all_layers, true});
  const int64_t asked = c.keep_layers == "auto" ? -1 : std::stoll(c.keep_layers);
  Plan least = run({0, false});
  if (asked == 0) return least;
  const bool attention = roomy(run({0, true}));
  if (asked > 0) return run({asked, attention});
  Plan best = attention ? run({0, true}) : std::move(least);
  if (c.gradient_checkpointing == "true") return best;
  int64_t fits = 0, fails = best.layers + 1;
  while (fits + 1 < fails) {
    const int64_t middle = fails == best.layers + 1 && fits == 0 ? best.layers : (fits + fails) / 2;
    Plan p = run({middle, attention});
    if (roomy(p)) {
      fits = middle, best = std::move(p);
    } else {
      fails = middle;
    }
  }
  return best;
}

}  // namespace tessera
