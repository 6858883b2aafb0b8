#include "train/device_batch.h"

#include <numeric>
#include <span>

#include "backend/backend.h"

namespace tessera {
namespace {

// Arrays one after another, each from a multiple of 64 bytes on.
class Packed {
 public:
  template <class T>
  size_t add(const std::vector<T>& values) {
    const size_t at = bytes_.size();
    const auto more = std::as_bytes(std::span(values));
    bytes_.insert(bytes_.end(), more.begin(), more.end());
    bytes_.resize((bytes_.size() + 63) / 64 * 64);
    return at;
  }
  Tensor copy_to(Arena& arena, const char* name) const {
    const Tensor t = arena.take(Dtype::u8, {int64_t(bytes_.size())}, name);
    if (t.size()) t.home->copy(t.data, bytes_.data(), bytes_.size());
    return t;
  }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

DeviceBatch to_device(const Batch& b, Arena& arena) {
  std::vector<int32_t> rows, labels;
  for (size_t i = 0; i < b.targets.size(); ++i)
    if (b.targets[i] >= 0) rows.push_back(int32_t(i)), labels.push_back(b.targets[i]);
  const int64_t n = int64_t(rows.size());

  Packed packed;
  const size_t ids_at = packed.add(b.ids), positions_at = packed.add(b.positions), starts_at = packed.add(b.starts);
  const size_t keys_at = packed.add(b.row_keys), rows_at = packed.add(rows), labels_at = packed.add(labels);
  const Tensor all = packed.copy_to(arena, "batch");
  const auto part = [&](size_t at, Dtype dtype, Shape shape) { return Tensor{all.as<std::byte>() + at, dtype, shape, all.home}; };

  DeviceBatch out;
  out.ids = part(ids_at, Dtype::i32, {b.B, b.T});
  out.positions = part(positions_at, Dtype::i32, {b.B, b.T});
  out.starts = part(starts_at, Dtype::i32, {b.B, b.T});
  out.row_keys = part(keys_at, Dtype::i64, {b.B});
  out.targets = {part(rows_at, Dtype::i32, {n}), part(labels_at, Dtype::i32, {n})};
  out.losses = arena.take(Dtype::f32, {n}, "losses");
  return out;
}

Tensor to_device(const std::vector<int32_t>& values, Arena& arena, const char* name) {
  const Tensor t = arena.take(Dtype::i32, {int64_t(values.size())}, name);
  if (t.size()) t.home->copy(t.data, values.data(), t.bytes());
  return t;
}

double sum_of_losses(Tensor losses) {
  std::vector<float> host(size_t(losses.size()));
  if (losses.size()) losses.home->copy(host.data(), losses.data, losses.bytes());
  return std::accumulate(host.begin(), host.end(), 0.0);
}

}  // namespace tessera
