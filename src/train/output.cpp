#include "train/output.h"

#include <algorithm>
#include <cassert>
#include <exception>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer.h"
#include "io/json.h"

namespace tessera {
namespace {

std::vector<int64_t> sizes(const Shape& s) { return {s.dim.begin(), s.dim.begin() + s.rank}; }

// The unit that was gathered last, of one of the streams; a tensor of another one gathers that instead. Collective.
class GatheredUnit {
 public:
  GatheredUnit(Comm& comm, const std::vector<TensorStream>& streams) : comm_(comm), streams_(streams) {}
  const float* tensor(size_t stream, int unit, const PartPlace& part) {
    if (stream != stream_ || unit != unit_) whole_ = gather_unit(comm_, streams_[stream].share(unit), storage_);
    stream_ = stream, unit_ = unit;
    return whole_ + part.begin;
  }

 private:
  Comm& comm_;
  const std::vector<TensorStream>& streams_;
  size_t stream_ = 0;
  int unit_ = -1;
  const float* whole_ = nullptr;
  std::vector<float> storage_;
};

struct Entry {
  size_t stream;
  int unit;
  const PartPlace* part;
};

// What is written, in the order of the file: by name, all of one dtype.
std::map<std::string, Entry> entries_of(const Model& m, const std::vector<TensorStream>& streams) {
  std::map<std::string, Entry> out;
  for (size_t s = 0; s < streams.size(); ++s)
    for (int unit = 0; unit <= m.root_unit(); ++unit)
      for (const PartPlace& p : m.units[size_t(unit)].parts)
        if (p.trains) out[streams[s].prefix + p.name] = {s, unit, &p};
  return out;
}

// Adapters are small: all of them at once, on rank 0 only.
std::vector<TensorToWrite> gather_adapter(const OutputSource& from, std::vector<std::vector<float>>& storage) {
  std::vector<TensorToWrite> out;
  const std::vector<UnitLayout>& units = from.model.model.units;
  storage.resize(units.size());
  for (size_t unit = 0; unit < units.size(); ++unit) {
    if (!units[unit].trainable) continue;
    const float* whole = gather_unit(from.comm, from.values(int(unit)), storage[unit]);
    if (from.comm.rank() != 0) {
      storage[unit] = {};
      continue;
    }
    for (const PartPlace& p : units[unit].parts)
      if (p.trains) out.push_back({p.name, Dtype::f32, sizes(p.shape), whole + p.begin});
  }
  return out;
}

Charge charge_gathering(const OutputSource& from) {
  return Charge(from.model.backend.host_ledger(), "gathered for saving", gather_bytes(from.model, from.comm));
}

constexpr const char* peft_prefix = "base_model.model.";

}  // namespace

size_t gather_bytes(const LoadedModel& m, const Comm& comm) {
  if (comm.size() == 1 && m.backend.host_can_read()) return 0;
  int64_t all = 0, largest = 0;
  for (const UnitLayout& unit : m.model.units) all += unit.trainable, largest = std::max(largest, unit.trainable);
  return size_t(comm.rank() == 0 && !m.request.train_base ? all : largest) * sizeof(float);
}

Share share_of(Tensor owned, Range range) {
  const bool away = owned.size() && owned.home->on_device(owned.data);
  return {range, owned.as<const float>(), away ? owned.home : nullptr};
}

const float* read_share(const Share& share, Range part, std::vector<float>& storage) {
  const float* const there = share.values + (part.begin - share.range.begin);
  if (!share.device) return there;
  storage.resize(part.size());
  share.device->copy(storage.data(), there, part.size() * sizeof(float));
  return storage.data();
}

const float* gather_unit(Comm& comm, Share mine, std::vector<float>& storage) {
  const auto begins = gather_values(comm, int64_t(mine.range.begin)), ends = gather_values(comm, int64_t(mine.range.end));
  const int64_t total = *std::max_element(ends.begin(), ends.end());
  const bool everywhere = *std::max_element(begins.begin(), begins.end()) == 0 && *std::min_element(ends.begin(), ends.end()) == total;
  if (everywhere) return read_share(mine, mine.range, storage);
  storage.assign(size_t(total), 0);
  if (mine.device)
    mine.device->copy(storage.data() + mine.range.begin, mine.values, mine.range.size() * sizeof(float));
  else
    std::copy_n(mine.values, mine.range.size(), storage.data() + mine.range.begin);
  std::vector<Range> parts;
  for (size_t r = 0; r < begins.size(); ++r) parts.push_back({size_t(begins[r]) * sizeof(float), size_t(ends[r]) * sizeof(float)});
  comm.all_gather(reinterpret_cast<std::byte*>(storage.data()), parts);
  return storage.data();
}

OutputSource masters_of(LoadedModel& m) {
  return {m, m.comm, [&m](int unit) { return share_of(m.sharded.values(unit), m.sharded.trainable_range(unit)); }};
}

void write_tensors(const OutputSource& from, const std::string& path, const std::vector<TensorStream>& streams, Dtype dtype,
                   const std::map<std::string, std::string>& metadata) {
  const Charge gathered = charge_gathering(from);
  const auto entries = entries_of(from.model.model, streams);
  GatheredUnit unit(from.comm, streams);
  auto next = entries.begin();  // every rank gathers all of them in this order, also when rank 0 cannot write
  const auto gather = [&] {
    const Entry& e = (next++)->second;
    return unit.tensor(e.stream, e.unit, *e.part);
  };
  std::exception_ptr error;
  if (from.comm.rank() == 0) {
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, e] : entries) tensors.push_back({name, dtype, sizes(e.part->shape), nullptr});
    std::vector<std::byte> converted;
    const std::unique_ptr<Backend> host = dtype == Dtype::f32 ? nullptr : host_backend(from.model.backend);
    const auto bytes_of = [&](const TensorToWrite& t) -> std::span<const std::byte> {
      assert(next != entries.end() && t.name == next->first);
      const int64_t n = next->second.part->shape.size();
      const float* values = gather();
      if (dtype == Dtype::f32) return std::as_bytes(std::span(values, size_t(n)));
      Backend& backend = host ? *host : from.model.backend;
      converted.resize(size_t(n) * size_of(dtype));
      backend.convert({converted.data(), dtype, {n}, &backend}, {const_cast<float*>(values), Dtype::f32, {n}, &backend});
      return converted;
    };
    try {
      write_safetensors(path, tensors, metadata, bytes_of);
    } catch (const RankLost&) {
      throw;
    } catch (const Error&) {
      error = std::current_exception();
    }
  }
  while (next != entries.end()) gather();
  if (error) std::rethrow_exception(error);
}

void write_adapter(const OutputSource& from, const std::string& folder, bool fsdp_qlora_file) {
  const Charge gathered = charge_gathering(from);
  std::vector<std::vector<float>> storage;
  std::vector<TensorToWrite> tensors = gather_adapter(from, storage);
  if (from.comm.rank() != 0) return;
  make_folder(folder);
  if (fsdp_qlora_file) write_fsdp_qlora_adapter(folder, tensors);
  for (TensorToWrite& t : tensors) t.name = peft_prefix + t.name;
  write_peft_adapter(folder, from.model.peft, tensors);
}

void write_model(const OutputSource& from, const std::string& folder, Dtype dtype) {
  write_tensors(from, folder + "/model.safetensors", {{"", from.values}}, dtype, {{"format", "pt"}});
  if (from.comm.rank() != 0) return;
  write_config(from.model.request.folder, folder, dtype);
  copy_tokenizer(from.model.request.folder, folder);
}

void write_adapter_config(const LoadedModel& m, const std::string& folder) {
  std::vector<TensorToWrite> names;
  for (const UnitLayout& unit : m.model.units)
    for (const PartPlace& p : unit.parts)
      if (p.trains) names.push_back({peft_prefix + p.name, Dtype::f32, {}, nullptr});
  write_peft_config(folder, m.peft, names);
}

void write_config(const std::string& model_folder, const std::string& folder, Dtype dtype) {
  Json config = read_json(model_folder + "/config.json");
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = std::string(torch_name(dtype));
  write_file_atomic(folder + "/config.json", config.dump(2) + "\n");
  const std::string generation = model_folder + "/generation_config.json";
  if (file_exists(generation)) copy_file_atomic(generation, folder + "/generation_config.json");
}

void copy_tokenizer(const std::string& model_folder, const std::string& folder) {
  if (!Tokenizer::present(model_folder)) return;
  const Tokenizer tokenizer = Tokenizer::load(model_folder);
  for (const std::string& name : tokenizer.files())
    if (file_exists(model_folder + "/" + name)) copy_file_atomic(model_folder + "/" + name, folder + "/" + name);
}

}  // namespace tessera
