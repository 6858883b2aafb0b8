#include "train/device_batch.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <exception>
#include <numeric>
#include <span>
#include <utility>

#include "backend/backend.h"

namespace tessera {
namespace {

constexpr size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Arrays one after another, each from a multiple of 64 bytes on.
class Packed {
 public:
  template <class T>
  size_t add(const std::vector<T>& values) {
    parts_.push_back(std::as_bytes(std::span(values)));
    return std::exchange(bytes_, bytes_ + padded(parts_.back().size()));
  }
  size_t bytes() const { return bytes_; }
  void write(std::byte* to) const {
    for (const auto& part : parts_) {
      if (part.size()) std::memcpy(to, part.data(), part.size());
      to += padded(part.size());
    }
  }

 private:
  std::vector<std::span<const std::byte>> parts_;
  size_t bytes_ = 0;
};

// A batch as it is sent, and what it is on the device when its bytes are at `all` there.
class Packing {
 public:
  explicit Packing(const Batch& b) : batch_(b) {
    for (size_t i = 0; i < b.targets.size(); ++i)
      if (b.targets[i] >= 0) rows_.push_back(int32_t(i)), labels_.push_back(b.targets[i]);
    ids_at_ = packed.add(b.ids), positions_at_ = packed.add(b.positions), starts_at_ = packed.add(b.starts);
    keys_at_ = packed.add(b.row_keys), rows_at_ = packed.add(rows_), labels_at_ = packed.add(labels_);
  }
  int64_t targets() const { return int64_t(rows_.size()); }
  DeviceBatch at(Tensor all, Tensor losses) const {
    const auto part = [&](size_t at, Dtype dtype, Shape shape) { return Tensor{all.as<std::byte>() + at, dtype, shape, all.home}; };
    DeviceBatch out;
    out.ids = part(ids_at_, Dtype::i32, {batch_.B, batch_.T});
    out.positions = part(positions_at_, Dtype::i32, {batch_.B, batch_.T});
    out.starts = part(starts_at_, Dtype::i32, {batch_.B, batch_.T});
    out.row_keys = part(keys_at_, Dtype::i64, {batch_.B});
    out.targets = {part(rows_at_, Dtype::i32, {targets()}), part(labels_at_, Dtype::i32, {targets()})};
    out.losses = losses;
    return out;
  }
  Packed packed;

 private:
  const Batch& batch_;
  std::vector<int32_t> rows_, labels_;
  size_t ids_at_ = 0, positions_at_ = 0, starts_at_ = 0, keys_at_ = 0, rows_at_ = 0, labels_at_ = 0;
};

Tensor copied(const Packed& packed, std::byte* by_way_of, Arena& arena) {
  const Tensor t = arena.take(Dtype::u8, {int64_t(packed.bytes())}, "batch");
  packed.write(by_way_of);
  if (t.size()) t.home->copy(t.data, by_way_of, packed.bytes());
  return t;
}

size_t loss_bytes(int64_t targets) { return padded(size_t(targets) * sizeof(float)); }

}  // namespace

DeviceBatch to_device(const Batch& b, Arena& arena) {
  const Packing packing(b);
  std::vector<std::byte> host(packing.packed.bytes());
  const Tensor all = copied(packing.packed, host.data(), arena);
  return packing.at(all, arena.take(Dtype::f32, {packing.targets()}, "losses"));
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

StepBatches::~StepBatches() {
  if (host_used_ && std::uncaught_exceptions() == 0) backend_.finish();
}

void StepBatches::reserve(int64_t micro_batches, int64_t rows, int64_t tokens) {
  if (backend_.host_can_read() || micro_batches == 0) return;
  const size_t numbers = padded(size_t(tokens) * sizeof(int32_t)), batch = 5 * numbers + padded(size_t(rows) * sizeof(int64_t));
  make_room(size_t(micro_batches) * batch, size_t(micro_batches) * loss_bytes(tokens));
}

// REQUIRES: nothing is on its way.
void StepBatches::make_room(size_t host, size_t losses) {
  if (host_.bytes() < host) host_ = {}, host_ = backend_.allocate_pinned(host, "batches of a step");
  if (losses_.bytes() < losses) losses_ = {}, losses_ = backend_.allocate(losses, "losses of a step");
}

DeviceBatch StepBatches::send(const Batch& b, Arena& arena) {
  if (backend_.host_can_read()) return to_device(b, arena);
  const Packing packing(b);
  const size_t bytes = packing.packed.bytes(), back = loss_bytes(packing.targets());
  if (host_used_ + bytes > host_.bytes() || losses_used_ + back > losses_.bytes()) {
    read_back();
    make_room(bytes, back);
  }
  const Tensor all = copied(packing.packed, host_.data() + std::exchange(host_used_, host_used_ + bytes), arena);
  std::byte* const losses = losses_.data() + losses_used_;
  return packing.at(all, {losses, Dtype::f32, {packing.targets()}, &backend_});
}

void StepBatches::add(Tensor losses) {
  const int64_t count = losses.empty() ? 0 : losses.size();
  if (backend_.host_can_read()) return sums_.push_back(count ? sum_of_losses(losses) : 0);
  counts_.push_back(size_t(count));
  losses_used_ += loss_bytes(count);
}

// What comes back takes the place of what was sent, which is longer and has been read when the copy begins.
void StepBatches::read_back() {
  assert(losses_used_ <= host_.bytes());
  if (losses_used_)
    backend_.copy(host_.data(), losses_.data(), losses_used_);
  else if (host_used_)
    backend_.finish();
  const std::byte* at = host_.data();
  for (const size_t count : counts_) {
    const auto* const losses = reinterpret_cast<const float*>(at);
    sums_.push_back(std::accumulate(losses, losses + count, 0.0));
    at += loss_bytes(int64_t(count));
  }
  counts_.clear();
  host_used_ = losses_used_ = 0;
}

std::vector<double> StepBatches::take() {
  if (!backend_.host_can_read()) read_back();
  return std::exchange(sums_, {});
}

}  // namespace tessera
