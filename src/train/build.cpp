#include "train/build.h"

#include <algorithm>
#include <cmath>

#include "backend/dry_backend.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "models/load.h"
#include "train/progress.h"

namespace tessera {
namespace {

std::map<std::string, AdapterSpec> adapter_specs(const PeftConfig& peft, const ModelConfig& config) {
  std::map<std::string, AdapterSpec> out;
  for (const TargetedModule& t : targeted_modules(peft, linear_modules(config)))
    out[t.path] = {t.rank, float(t.scaling), float(peft.dropout)};
  return out;
}

ModelOptions model_options(const ModelRequest& r, const PeftConfig& peft, const ModelConfig& config) {
  ModelOptions o;
  if (config.stored_nf4 && !r.quantized)
    fail(str("model folder ", config.path), "is saved in 4 bits (NF4), but the base was asked for dense",
         "--train_type qlora or custom_qlora", "choose one of them, or give the original, unquantized folder");
  o.format = &find_format(r.quantized ? r.quant_format : "dense");
  o.double_quant = config.stored_nf4 ? config.stored_double_quant : r.double_quant;
  o.compute = r.compute;
  o.train_base = r.train_base;
  if (r.new_adapter || !r.adapter.empty()) o.adapters = adapter_specs(peft, config);
  return o;
}

std::vector<UnitSize> unit_sizes(const Model& m) {
  std::vector<UnitSize> out;
  for (int u = 0; u <= m.root_unit(); ++u)
    out.push_back({m.units[size_t(u)].frozen_bytes, m.units[size_t(u)].trainable, u == m.root_unit()});
  const auto& root = m.units[size_t(m.root_unit())].parts;
  if (m.root.head && !root[0].trains) out.back().looked_up = root[1].begin;  // the embedding, which is the first part
  return out;
}

// Scales of one tensor: every rank contributes those of the blocks it encoded.
void exchange_values(Comm& comm, std::vector<float>& values, Range mine) {
  if (comm.size() == 1) return;
  const auto begins = gather_values(comm, int64_t(mine.begin)), ends = gather_values(comm, int64_t(mine.end));
  std::vector<Range> parts;
  for (size_t r = 0, at = 0; r < begins.size(); ++r) {
    const bool empty = begins[r] == ends[r];
    parts.push_back(empty ? Range{at, at} : Range{size_t(begins[r]) * sizeof(float), size_t(ends[r]) * sizeof(float)});
    at = parts.back().end;
  }
  comm.all_gather(reinterpret_cast<std::byte*>(values.data()), parts);
}

struct Sources {
  std::unique_ptr<TensorFiles> base, adapter;
  WeightSource source;
};

Sources open_sources(const ModelRequest& r, const ModelConfig& config) {
  Sources s;
  s.source.seed = r.seed;
  s.source.init_lora_weights = r.peft.init_lora_weights;
  if (r.init != "random") {
    s.base = std::make_unique<TensorFiles>(TensorFiles::open(r.weights.empty() ? r.folder : r.weights));
    check_checkpoint(config, *s.base);
    s.source.base = s.base.get();
  }
  if (!r.adapter.empty()) {
    s.adapter = std::make_unique<TensorFiles>(open_peft_tensors(r.adapter));
    s.source.adapter = s.adapter.get();
  }
  return s;
}

// Where a unit is loaded: in its place, or, when that is memory of a device, beside it on the host.
class Staging {
 public:
  Staging(Sharded& sharded, Backend& device) : sharded_(sharded), device_(device), host_(host_backend(device)) {}
  size_t bytes() const {
    size_t most = 0;
    for (int u = 0; u < sharded_.units(); ++u) most = std::max(most, frozen_bytes(u) + values_bytes(u));
    return most;
  }
  void take() {
    if (const size_t n = bytes()) memory_ = device_.reserve_pinned(n, "scratch of loading");
  }
  Backend& home() const { return host_ ? *host_ : device_; }
  std::byte* frozen(int unit) const { return frozen_bytes(unit) ? memory_.data() : sharded_.frozen_shard(unit); }
  float* values(int unit) const {
    return values_bytes(unit) ? reinterpret_cast<float*>(memory_.data() + frozen_bytes(unit)) : sharded_.values(unit).as<float>();
  }
  // What no array fills is zero, as in memory that was just taken.
  void clear(int unit) const { std::fill_n(memory_.data(), frozen_bytes(unit) + values_bytes(unit), std::byte(0)); }
  void place(int unit) const {
    if (const size_t n = frozen_bytes(unit)) device_.copy(sharded_.frozen_shard(unit), frozen(unit), n);
    if (const size_t n = values_bytes(unit)) device_.copy(sharded_.values(unit).data, values(unit), n);
    if (memory_) device_.finish();  // the next unit is written over this one
  }

 private:
  size_t frozen_bytes(int unit) const { return staged(sharded_.frozen_shard(unit), sharded_.frozen_range(unit).size()); }
  size_t values_bytes(int unit) const { return staged(sharded_.values(unit).data, sharded_.values(unit).bytes()); }
  size_t staged(const void* place, size_t bytes) const { return bytes && device_.on_device(place) ? bytes : 0; }

  Sharded& sharded_;
  Backend& device_;
  const std::unique_ptr<Backend> host_;
  Buffer memory_;
};

void load_all(LoadedModel& m, Staging& staging) {
  const Sources sources = open_sources(m.request, m.config);
  if (sources.adapter) check_adapter(m.model, *sources.adapter);
  staging.take();
  const Exchange exchange = [&](std::vector<float>& v, Range mine) { exchange_values(m.comm, v, mine); };
  Progress progress(m.request.quantized ? str("loading and quantizing to ", m.request.quant_format) : "loading", m.sharded.units());
  for (int u = 0; u < m.sharded.units(); ++u) {
    staging.clear(u);
    load_unit(m.model, u, sources.source, m.sharded.frozen_range(u), staging.frozen(u), m.sharded.trainable_range(u), staging.values(u),
              exchange, &staging.home());
    staging.place(u);
    if (sources.base) sources.base->forget_pages();
    progress.at(u + 1, human_bytes(resident_bytes()));
  }
  m.sharded.loaded();
}

Buffer arena_memory(const ModelRequest& r, Backend& b) {
  const size_t unlimited = b.host_can_read() ? b.total_memory() : b.free_memory() / 2;
  return b.reserve(r.arena_bytes ? r.arena_bytes : unlimited, "activations");
}

// A dry run computes nothing, on the host neither.
std::unique_ptr<Backend> masters_backend(const ModelRequest& r, const Backend& b) {
  if (!r.values && !b.host_can_read()) return std::make_unique<DryBackend>();
  return host_backend(b);
}

// An adapter from a folder brings its own rank, scale and targets; dropout and the base's name are this run's.
PeftConfig adapter_config(const ModelRequest& r) {
  if (r.adapter.empty()) return r.peft;
  PeftConfig peft = read_peft_config(r.adapter);
  peft.dropout = r.peft.dropout;
  if (!r.peft.base_model_name_or_path.empty()) peft.base_model_name_or_path = r.peft.base_model_name_or_path;
  return peft;
}

}  // namespace

LoadedModel::LoadedModel(const ModelRequest& r, Comm& c, Backend& b)
    : request(r),
      comm(c),
      backend(b),
      config(read_model_config(r.folder)),
      peft(adapter_config(r)),
      model(make_model(config, model_options(r, peft, config))),
      device_comm(r.values ? make_device_comm(c, b) : nullptr),
      masters_home(r.masters_on_host ? masters_backend(r, b) : nullptr),
      sharded(device_comm ? *device_comm : c, b, find_strategy(r.strategy), unit_sizes(model), r.compute, r.frozen_place,
              masters_home.get()),
      arena(&b, arena_memory(r, b), &b.ledger()),
      pass(model, sharded, b, arena, r.seed) {
  Staging staging(sharded, b);
  const Charge scratch(b.host_ledger(), "scratch of loading", load_scratch(model) + staging.bytes());
  if (r.values) load_all(*this, staging);
  pass.keep(r.keeping);
  if (r.micro_batches) pass.reserve(r.micro_batches, r.rows, r.length);
  if (r.rows_on_host && !b.host_can_read()) pass.keep_on_host(r.rows_on_host);
}

std::unique_ptr<Backend> host_backend(const Backend& b) { return b.host_can_read() ? nullptr : make_backend("cpu", b.threads()); }

Dtype compute_dtype(const std::string& precision) {
  if (precision == "fp32") return Dtype::f32;
  if (precision == "bf16") return Dtype::bf16;
  fail(str("--precision ", precision), "is not built", "fp32, bf16", "choose one of them");
}

ModelRequest model_request(const TrainConfig& c) {
  const TrainType& type = find_train_type(c.train_type);
  ModelRequest r;
  r.folder = c.model;
  r.init = c.init;
  r.quantized = type.quantized;
  r.quant_format = c.quant_format;
  r.double_quant = c.double_quant;
  r.train_base = !type.adapter;
  r.adapter = c.adapter_init;
  r.new_adapter = type.adapter && c.adapter_init.empty();
  r.peft.rank = c.lora_rank;
  r.peft.alpha = c.lora_alpha;
  r.peft.dropout = c.lora_dropout;
  r.peft.target_modules = c.lora_target_modules;
  r.peft.exclude_modules = c.lora_exclude_modules;
  r.peft.use_rslora = c.use_rslora;
  r.peft.init_lora_weights = c.init_lora_weights;
  r.peft.base_model_name_or_path = c.model;
  r.compute = compute_dtype(c.precision);
  r.strategy = c.sharding_strategy;
  if (c.use_cpu_offload) r.frozen_place = FrozenPlace::host;
  if (c.use_activation_cpu_offload) r.rows_on_host = c.batch_size * c.context_length;
  r.micro_batches = c.gradient_accumulation_steps, r.rows = c.batch_size, r.length = c.context_length;
  r.masters_on_host = c.optimizer_offload;
  r.seed = c.seed;
  return r;
}

DatasetOptions dataset_options(const TrainConfig& c, const std::string& dataset) {
  DatasetOptions o;
  o.dataset = dataset;
  o.dialect = c.defaults;
  o.text_field = c.dataset_text_field;
  o.context_length = c.context_length;
  o.samples = c.dataset_samples;
  o.completion_only = c.completion_only_loss;
  return o;
}

int rank_threads(const std::string& /*device*/, int64_t asked, Comm& comm) {
  if (asked > 0) return int(asked);
  int64_t on_node = 0;
  for (const int64_t node : gather_values(comm, int64_t(comm.node()))) on_node += node == comm.node();
  return std::max(1, int(make_backend("cpu", 0)->threads() / on_node));  // of the host, whatever the device
}

void report_rows(const Dataset& data, const char* what) {
  const DatasetReport& r = data.report();
  say(str(what, "     ", data.path().empty() ? "made in memory" : data.path(), ": ", r.kind, ", ", r.kept, " of ", r.rows, " rows, ",
          human_count(double(r.tokens)), " tokens, ", human_count(double(r.label_tokens)), " of them trained on, ", r.truncated,
          " rows cut at the context length"));
  if (!r.chat_template.empty()) say(str(what, "     conversations are written by the ", r.chat_template, " template"));
  for (const std::string& note : r.notes) say(str(what, "     ", note));
  if (r.dropped_without_label)
    warn(str(r.dropped_without_label, " of ", r.rows,
             " rows have no token left to learn after the cut and are dropped; a larger --context_length keeps them"));
}

}  // namespace tessera
