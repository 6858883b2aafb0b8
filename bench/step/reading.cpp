#include "bench/step/reading.h"

#include <algorithm>
#include <chrono>

#include "bench/flops.h"
#include "core/rng.h"
#include "data/loader.h"
#include "train/build.h"
#include "train/generate.h"
#include "train/optimizer.h"
#include "train/plan.h"

namespace tessera {
namespace {

class Watch {
 public:
  double lap() {
    const auto before = std::exchange(last_, std::chrono::steady_clock::now());
    return std::chrono::duration<double>(last_ - before).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

std::vector<int32_t> random_ids(int64_t n, uint64_t seed, uint64_t stream, int64_t vocab) {
  const Rng rng(seed, Purpose::sample, "ids", stream);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(int32_t(rng.below(uint64_t(i), uint64_t(vocab))));
  return ids;
}

Batch random_batch(const TrainConfig& c, int64_t vocab, int64_t number) {
  std::vector<Example> rows;
  for (int64_t b = 0; b < c.batch_size; ++b) {
    const auto ids = random_ids(c.context_length, c.seed, uint64_t(number * c.batch_size + b), vocab);
    rows.push_back({ids, ids});
  }
  std::vector<const Example*> pointers;
  for (const Example& row : rows) pointers.push_back(&row);
  return collate(pointers);
}

size_t largest(Comm& comm, size_t mine) {
  const auto all = gather_values(comm, int64_t(mine));
  return size_t(*std::max_element(all.begin(), all.end()));
}

Resident largest(Comm& comm, Resident mine) {
  return {largest(comm, mine.peak), largest(comm, mine.anonymous), largest(comm, mine.file), largest(comm, mine.shared)};
}

void read_memory(Reading& out, Comm& comm, Backend& backend) {
  out.memory = largest(comm, resident());
  if (!backend.host_can_read()) out.device_peak = largest(comm, backend.ledger().peak());
}

// One optimizer step, as train/loop.cpp does it. Returns the mean loss.
double step(LoadedModel& m, Optimizer& optimizer, const Batch& batch, int64_t number, double lr) {
  const double targets = double(sum_of(m.comm, batch.target_tokens));
  m.sharded.zero_gradients();
  m.pass.train(batch, float(1 / targets));
  const float norm = optimizer.gradient_norm();
  double sum = 0;
  for (const double of_rank : gather_values(m.comm, m.pass.take_losses().at(0))) sum += of_rank;
  optimizer.step(number, lr, norm);
  m.backend.finish();
  return sum / targets;
}

// Every weight that one new token multiplies: an embedding that is not the head as well is not read.
double weight_bytes(const LoadedModel& m) {
  double bytes = 0;
  for (const UnitLayout& unit : m.model.units) bytes += double(unit.frozen_bytes);
  if (!m.config.tied) bytes -= double(m.config.hidden * m.config.vocab) * double(size_of(m.request.compute));
  return bytes;
}

}  // namespace

double Reading::median() const {
  std::vector<double> s = seconds;
  std::sort(s.begin(), s.end());
  const size_t half = s.size() / 2;
  return s.size() % 2 ? s[half] : (s[half - 1] + s[half]) / 2;
}

Reading time_training(const StepRequest& r, Comm& comm, Backend& backend) {
  const TrainConfig& c = r.config;
  Reading out;
  Watch watch;
  ModelRequest request = model_request(c);
  Plan plan = make_plan(c, this_machine(comm, backend));
  request.keeping = plan.keeping;
  if (!backend.host_can_read()) request.arena_bytes = plan.arena;
  LoadedModel model(request, comm, backend);
  Optimizer optimizer(model.model, model.sharded, backend, {});
  out.load_seconds = watch.lap();
  for (int64_t s = 0; s <= r.steps; ++s) {
    const Batch batch = random_batch(c, model.config.vocab, s * comm.size() + comm.rank());
    watch.lap();
    out.loss = step(model, optimizer, batch, s + 1, c.lr);
    if (s == 0) {
      out.first_seconds = seconds_since_start();
    } else {
      out.seconds.push_back(watch.lap());
    }
  }
  out.tokens = double(c.batch_size * c.context_length * comm.size());
  out.flops = training_flops(model.config, {model.request.train_base, c.gradient_checkpointing == "true"});
  read_memory(out, comm, backend);
  if (plan.machine.gpu()) {
    hold_to_constant(plan, comm, backend);
    out.planned = plan.needed(), out.planned_constant = plan.gpu_constant(), out.constant = plan.gpu_constant_found;
  }
  return out;
}

Reading time_generation(const StepRequest& r, Comm& comm, Backend& backend) {
  Reading out;
  Watch watch;
  ModelRequest request = model_request(r.config);
  request.train_base = request.new_adapter = false;
  LoadedModel model(request, comm, backend);
  out.load_seconds = watch.lap();
  const auto prompt = random_ids(r.prompt, r.config.seed, 0, model.config.vocab);
  watch.lap();
  generate(model.pass, prompt, r.generate + 1, {}, {}, [&](int32_t) {
    if (out.first_seconds == 0) {
      out.first_seconds = seconds_since_start();
      watch.lap();
    } else {
      out.seconds.push_back(watch.lap());
    }
    return true;
  });
  out.tokens = 1;
  out.flops = forward_flops(model.config);
  out.bytes = weight_bytes(model);
  read_memory(out, comm, backend);
  return out;
}

}  // namespace tessera
