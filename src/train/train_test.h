// What the tests of this room share: golden batches, models under ../shared, gradients by name.
#pragma once
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "testing/golden.h"
#include "testing/gradients.h"
#include "testing/test_backend.h"
#include "testing/test_folder.h"
#include "train/build.h"

namespace tessera {

using GoldenJson = nlohmann::ordered_json;

// Devices with f32 rows.
inline std::vector<const char*> f32_devices() {
  std::vector<const char*> out;
  for (const DeviceRow& row : every_device())
    if (row.dtype == Dtype::f32) out.push_back(row.device);
  return out;
}

inline GoldenJson golden_json(const std::string& relative) { return GoldenJson::parse(shared_text(relative)); }

// input_ids, attention_mask, labels of a golden file as a batch: positions from 0, targets shifted by one.
inline Batch golden_batch(const GoldenFile& f) {
  const Shape shape = f.shape("input_ids");
  Batch b;
  b.B = shape.dim[0], b.T = shape.dim[1];
  for (const double id : f.doubles("input_ids")) b.ids.push_back(int32_t(id));
  const auto labels = f.doubles("labels");
  for (int64_t i = 0; i < b.B * b.T; ++i) {
    b.targets.push_back((i + 1) % b.T ? int32_t(labels[size_t(i + 1)]) : -100);
    b.positions.push_back(int32_t(i % b.T));
    b.target_tokens += b.targets.back() >= 0;
  }
  b.starts.assign(b.ids.size(), 0);
  b.row_keys.assign(size_t(b.B), 0);
  return b;
}

// Rows of (B*T, n) where the attention mask is 1.
inline std::vector<double> real_rows(const std::vector<double>& values, const std::vector<double>& mask) {
  const size_t n = values.size() / mask.size();
  std::vector<double> out;
  for (size_t r = 0; r < mask.size(); ++r)
    if (mask[r] > 0) out.insert(out.end(), values.begin() + std::ptrdiff_t(r * n), values.begin() + std::ptrdiff_t((r + 1) * n));
  return out;
}

inline std::vector<double> doubles(const std::vector<float>& v) { return {v.begin(), v.end()}; }

// A model of one rank in this process.
struct TestModel {
  explicit TestModel(const ModelRequest& request, const char* device = "cpu")
      : backend(make_test_backend(device, 1)), comm(make_single_comm()), model(with_arena(request), *comm, *backend) {}
  static ModelRequest with_arena(ModelRequest r) {
    r.arena_bytes = size_t(256) << 20;
    return r;
  }

  // Gradient sums by tensor name; every trainable tensor of the model.
  std::map<std::string, std::vector<double>> gradients() {
    std::map<std::string, std::vector<double>> out;
    for (int unit = 0; unit < model.sharded.units(); ++unit) {
      const std::vector<double> all = to_doubles(model.sharded.gradients(unit));
      for (const PartPlace& p : model.model.units[size_t(unit)].parts)
        if (p.trains) out[p.name] = {all.begin() + std::ptrdiff_t(p.begin), all.begin() + std::ptrdiff_t(p.element_range().end)};
    }
    return out;
  }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Comm> comm;
  LoadedModel model;
};

inline ModelRequest dense_request(const std::string& folder, Dtype compute = Dtype::f32) {
  ModelRequest r;
  r.folder = folder;
  r.compute = compute;
  return r;
}

}  // namespace tessera
