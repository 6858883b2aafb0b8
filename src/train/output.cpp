#include "train/output.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "core/text.h"
#include "data/tokenizer.h"
#include "io/json.h"

namespace tessera {
namespace {

std::vector<int64_t> sizes(const Shape& s) { return {s.dim.begin(), s.dim.begin() + s.rank}; }

// The unit that was gathered last, of one of the streams; a tensor of another one gathers that instead. Collective.
class GatheredUnit {
 public:
  GatheredUnit(LoadedModel& m, const std::vector<TensorStream>& streams) : model_(m), streams_(streams) {}
  const float* tensor(size_t stream, int unit, const PartPlace& part) {
    if (stream != stream_ || unit != unit_) whole_ = gather_unit(model_.sharded, unit, streams_[stream].owned(unit), storage_);
    stream_ = stream, unit_ = unit;
    return whole_ + part.begin;
  }

 private:
  LoadedModel& model_;
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

}  // namespace

const float* gather_unit(Sharded& sharded, int unit, Tensor owned, std::vector<float>& storage) {
  Comm& comm = sharded.comm();
  const Range mine = sharded.trainable_range(unit);
  const auto begins = gather_values(comm, int64_t(mine.begin)), ends = gather_values(comm, int64_t(mine.end));
  const int64_t total = *std::max_element(ends.begin(), ends.end());
  if (mine.begin == 0 && int64_t(mine.end) == total && *std::min_element(ends.begin(), ends.end()) == total) return owned.as<float>();
  storage.assign(size_t(total), 0);
  std::copy_n(owned.as<float>(), mine.size(), storage.data() + mine.begin);
  std::vector<Range> parts;
  for (size_t r = 0; r < begins.size(); ++r) parts.push_back({size_t(begins[r]) * sizeof(float), size_t(ends[r]) * sizeof(float)});
  comm.all_gather(reinterpret_cast<std::byte*>(storage.data()), parts);
  return storage.data();
}

void write_tensors(LoadedModel& m, const std::string& path, const std::vector<TensorStream>& streams, Dtype dtype,
                   const std::map<std::string, std::string>& metadata) {
  const auto entries = entries_of(m.model, streams);
  GatheredUnit unit(m, streams);
  if (m.comm.rank() != 0) {
    for (const auto& [name, e] : entries) unit.tensor(e.stream, e.unit, *e.part);
    return;
  }
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, e] : entries) tensors.push_back({name, dtype, sizes(e.part->shape), nullptr});
  std::vector<std::byte> converted;
  write_safetensors(path, tensors, metadata, [&](const TensorToWrite& t) -> std::span<const std::byte> {
    const Entry& e = entries.at(t.name);
    const int64_t n = e.part->shape.size();
    const float* values = unit.tensor(e.stream, e.unit, *e.part);
    if (dtype == Dtype::f32) return std::as_bytes(std::span(values, size_t(n)));
    converted.resize(size_t(n) * size_of(dtype));
    m.backend.convert({converted.data(), dtype, {n}, &m.backend}, {const_cast<float*>(values), Dtype::f32, {n}, &m.backend});
    return converted;
  });
}

// Adapters are small: all of them at once, on rank 0 only.
std::vector<TensorToWrite> gather_adapter(LoadedModel& m, std::vector<std::vector<float>>& storage) {
  std::vector<TensorToWrite> out;
  storage.resize(size_t(m.sharded.units()));
  for (int unit = 0; unit < m.sharded.units(); ++unit) {
    if (!m.model.units[size_t(unit)].trainable) continue;
    const float* whole = gather_unit(m.sharded, unit, m.sharded.values(unit), storage[size_t(unit)]);
    if (m.comm.rank() != 0) {
      storage[size_t(unit)] = {};
      continue;
    }
    for (const PartPlace& p : m.model.units[size_t(unit)].parts)
      if (p.trains) out.push_back({p.name, Dtype::f32, sizes(p.shape), whole + p.begin});
  }
  return out;
}

void write_adapter(LoadedModel& m, const std::string& folder, bool fsdp_qlora_file) {
  std::vector<std::vector<float>> storage;
  std::vector<TensorToWrite> tensors = gather_adapter(m, storage);
  if (m.comm.rank() == 0) {
    make_folder(folder);
    if (fsdp_qlora_file) write_fsdp_qlora_adapter(folder, tensors);
    for (TensorToWrite& t : tensors) t.name = "base_model.model." + t.name;
    write_peft_adapter(folder, m.peft, tensors);
  }
  m.comm.barrier();
}

void write_model(LoadedModel& m, const std::string& folder, Dtype dtype) {
  if (m.comm.rank() == 0) make_folder(folder);
  write_tensors(m, folder + "/model.safetensors", {{"", [&](int unit) { return m.sharded.values(unit); }}}, dtype, {{"format", "pt"}});
  if (m.comm.rank() == 0) {
    write_config(m.request.folder, folder, dtype);
    copy_tokenizer(m.request.folder, folder);
  }
  m.comm.barrier();
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
