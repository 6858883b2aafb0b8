#include "comm/staged.h"

#include <cassert>

namespace tessera {

StagedComm::~StagedComm() {
  if (used_) backend_.finish();
}

std::byte* StagedComm::stage(size_t bytes) {
  if (used_ == stages_.size()) backend_.finish(), used_ = 0;
  Buffer& b = stages_[used_++];
  if (b.bytes() < bytes) b = {}, b = backend_.reserve_pinned(bytes, "exchange through host memory");
  return b.data();
}

// What is written now is read by nothing that any lane was given before.
void StagedComm::begin_return() {
  backend_.wait(Lane::to_device, backend_.now(Lane::compute));
  backend_.wait(Lane::to_device, backend_.now(Lane::exchange));
}
void StagedComm::end_return() { backend_.wait(Lane::exchange, backend_.now(Lane::to_device)); }

void StagedComm::all_gather(std::byte* buffer, std::span<const Range> parts) {
  if (!backend_.on_device(buffer)) return host_.all_gather(buffer, parts);
  all_gather_from(buffer, parts, buffer + parts[size_t(rank())].begin);
}

void StagedComm::all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte* mine) {
  assert(int(parts.size()) == size());
  if (!backend_.on_device(buffer)) return host_.all_gather_from(buffer, parts, mine);
  std::byte* const all = stage(parts.back().end);
  const Range own = parts[size_t(rank())];
  if (own.size()) backend_.copy(all + own.begin, mine, own.size());
  host_.all_gather(all, parts);
  begin_return();
  for (size_t r = 0; r < parts.size(); ++r) {
    std::byte* const place = buffer + parts[r].begin;
    const bool there = int(r) == rank() && place == mine;
    if (parts[r].size() && !there) backend_.copy_beside(place, all + parts[r].begin, parts[r].size());
  }
  end_return();
}

void StagedComm::reduce_scatter(float* sum, const float* x, std::span<const Range> parts) {
  assert(int(parts.size()) == size());
  if (!backend_.on_device(x)) return host_.reduce_scatter(sum, x, parts);
  const size_t n = parts.back().end, mine = parts[size_t(rank())].size() * sizeof(float);
  if (n == 0) return;
  float* const all = reinterpret_cast<float*>(stage(n * sizeof(float) + mine));
  float* const own = all + n;
  backend_.copy(all, x, n * sizeof(float));
  if (mine) backend_.copy(own, sum, mine);
  host_.reduce_scatter(own, all, parts);
  if (mine == 0) return;
  begin_return();
  backend_.copy_beside(sum, own, mine);
  end_return();
  backend_.wait(Lane::compute, backend_.now(Lane::exchange));
}

void StagedComm::broadcast(std::byte* buffer, size_t bytes, int root) {
  if (!backend_.on_device(buffer)) return host_.broadcast(buffer, bytes, root);
  std::byte* const all = stage(bytes);
  if (rank() == root) backend_.copy(all, buffer, bytes);
  host_.broadcast(all, bytes, root);
  if (rank() == root) return;
  begin_return();
  backend_.copy_beside(buffer, all, bytes);
  end_return();
}

}  // namespace tessera
