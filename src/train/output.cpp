#include "train/output.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/text.h"
#include "data/tokenizer.h"
#include "io/json.h"

namespace tessera {
namespace {

std::vector<int64_t> sizes(const Shape& s) { return {s.dim.begin(), s.dim.begin() + s.rank}; }

// Converted copies of f32 tensors; `storage` owns them.
std::vector<TensorToWrite> converted(std::vector<TensorToWrite> tensors, Dtype dtype, Backend& backend,
                                     std::vector<std::vector<std::byte>>& storage) {
  if (dtype == Dtype::f32) return tensors;
  for (TensorToWrite& t : tensors) {
    int64_t n = 1;
    for (const int64_t d : t.shape) n *= d;
    storage.emplace_back(size_t(n) * size_of(dtype));
    backend.convert({storage.back().data(), dtype, {n}, &backend}, {const_cast<void*>(t.data), Dtype::f32, {n}, &backend});
    t.dtype = dtype, t.data = storage.back().data();
  }
  return tensors;
}

void write_config(const LoadedModel& m, const std::string& folder, Dtype dtype) {
  Json config = read_json(m.request.folder + "/config.json");
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = std::string(torch_name(dtype));
  write_file_atomic(folder + "/config.json", config.dump(2) + "\n");
  const std::string generation = m.request.folder + "/generation_config.json";
  if (file_exists(generation)) copy_file_atomic(generation, folder + "/generation_config.json");
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

std::vector<TensorToWrite> gather_tensors(LoadedModel& m, const std::function<Tensor(int)>& owned,
                                          std::vector<std::vector<float>>& storage) {
  std::vector<TensorToWrite> out;
  storage.resize(size_t(m.sharded.units()));
  for (int unit = 0; unit < m.sharded.units(); ++unit) {
    if (!m.model.units[size_t(unit)].trainable) continue;
    const float* whole = gather_unit(m.sharded, unit, owned(unit), storage[size_t(unit)]);
    for (const PartPlace& p : m.model.units[size_t(unit)].parts)
      if (p.trains) out.push_back({p.name, Dtype::f32, sizes(p.shape), whole + p.begin});
  }
  return out;
}

void write_adapter(LoadedModel& m, const std::string& folder, bool fsdp_qlora_file) {
  std::vector<std::vector<float>> storage;
  std::vector<TensorToWrite> tensors = gather_tensors(
      m, [&](int unit) { return m.sharded.values(unit); }, storage);
  if (m.comm.rank() == 0) {
    make_folder(folder);
    if (fsdp_qlora_file) write_fsdp_qlora_adapter(folder, tensors);
    for (TensorToWrite& t : tensors) t.name = "base_model.model." + t.name;
    write_peft_adapter(folder, m.peft, tensors);
  }
  m.comm.barrier();
}

void write_model(LoadedModel& m, const std::string& folder, Dtype dtype) {
  std::vector<std::vector<float>> storage;
  const std::vector<TensorToWrite> tensors = gather_tensors(
      m, [&](int unit) { return m.sharded.values(unit); }, storage);
  if (m.comm.rank() == 0) {
    make_folder(folder);
    std::vector<std::vector<std::byte>> copies;
    write_safetensors(folder + "/model.safetensors", converted(tensors, dtype, m.backend, copies), {{"format", "pt"}});
    write_config(m, folder, dtype);
  }
  m.comm.barrier();
}

void copy_tokenizer(const std::string& model_folder, const std::string& folder) {
  if (!Tokenizer::present(model_folder)) return;
  const Tokenizer tokenizer = Tokenizer::load(model_folder);
  for (const std::string& name : tokenizer.files())
    if (file_exists(model_folder + "/" + name)) copy_file_atomic(model_folder + "/" + name, folder + "/" + name);
}

}  // namespace tessera
