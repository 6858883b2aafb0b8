// bench/prediction: what a training step asks of one GPU, operation by operation, as JSON: calls, shapes, FLOPs, bytes. It is the run's own
// code over a device that computes nothing (train/plan.h), so it needs no GPU. scripts/cuda_prediction.py makes the tables of docs/cuda.md.
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>

#include "backend/dry_backend.h"
#include "backend/profiling_backend.h"
#include "bench/step/request.h"
#include "comm/dry_comm.h"
#include "core/log.h"
#include "train/build.h"
#include "train/optimizer.h"
#include "train/plan.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t h200_memory = size_t(140) << 30;

PlanMachine one_gpu() {
  PlanMachine m;
  m.device = "cuda";
  m.own_memory = true;
  m.rank_memory = h200_memory;
  return m;
}

Batch full_batch(const TrainConfig& c) {
  const Example row{std::vector<int32_t>(size_t(c.context_length), 0), std::vector<int32_t>(size_t(c.context_length), 0)};
  return collate(std::vector<const Example*>(size_t(c.batch_size), &row));
}

// One step as bench/step does it: gradients zeroed, a micro-batch, the norm, the optimizer.
StepProfile dry_step(const TrainConfig& c, Keeping keeping) {
  Profile profile(0);
  ProfilingBackend backend(std::make_unique<DryBackend>(true), profile);
  DryTraffic traffic;
  DryComm comm(0, 1, 1, traffic, &backend.ledger());
  ModelRequest request = model_request(c);
  request.values = false;
  request.keeping = keeping;
  LoadedModel model(request, comm, backend);
  Optimizer optimizer(model.model, model.sharded, backend, {});
  const Batch batch = full_batch(c);
  {
    const ProfileStep step(1);
    model.sharded.zero_gradients();
    model.pass.train(batch, 1);
    const float norm = optimizer.gradient_norm();
    model.pass.take_losses();
    optimizer.step(1, c.lr, norm);
  }
  return profile.average();
}

Json json_of(const StepProfile::Row& row) {
  const Operation& o = row.operation;
  return {{"name", o.name},
          {"layout", o.layout},
          {"dtype", name_of(o.dtype)},
          {"sizes", std::vector<int64_t>(o.sizes.begin(), o.sizes.begin() + o.rank)},
          {"four_bit", o.four_bit},
          {"accumulates", o.accumulates},
          {"calls", row.calls},
          {"flops", o.flops},
          {"drops", o.drops},
          {"bytes", o.bytes}};
}

int run(const Arguments& args) {
  StepRequest r;
  FieldList fields = step_fields(r);
  if (!read_options(fields, args)) return 0;
  const TrainConfig& c = r.config;
  const Plan plan = make_plan(c, one_gpu());
  set_log_rank(1, 2);  // the dry run says nothing
  Json operations = Json::array();
  for (const auto& row : dry_step(c, plan.keeping).operations) operations.push_back(json_of(row));
  const Json out = {{"model", c.model},
                    {"train_type", c.train_type},
                    {"tokens", c.batch_size * c.context_length},
                    {"layers", plan.layers},
                    {"layers_kept", plan.keeping.layers},
                    {"attention_kept", plan.keeping.attention},
                    {"needed_bytes", plan.needed()},
                    {"operations", operations}};
  std::puts(out.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  try {
    return tessera::run(tessera::Arguments(argv + 1, argv + argc));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
