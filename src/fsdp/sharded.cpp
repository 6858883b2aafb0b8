#include "fsdp/sharded.h"

#include <cassert>
#include <optional>
#include <utility>

#include "fsdp/sharded_impl.h"

namespace tessera {
namespace {

std::vector<Range> scaled(std::vector<Range> parts, size_t factor) {
  for (Range& p : parts) p.begin *= factor, p.end *= factor;
  return parts;
}

}  // namespace

Tensor Sharded::Impl::owned_of(const Buffer& memory, const Unit& u, Dtype dtype, Backend* home) const {
  std::byte* data = u.owned.size() ? memory.data() + u.owned_at * size_of(dtype) : nullptr;
  return {data, dtype, {int64_t(u.owned.size())}, home};
}

// The owner's sum; what is stale becomes zero.
Tensor Sharded::Impl::cleared_sum(Unit& u) {
  const Tensor sum = owned_of(sums, u, Dtype::f32, &backend);
  if (u.sum == Sum::stale && sum.size()) backend.fill_zero(sum);
  if (u.sum == Sum::stale) u.sum = Sum::zero, u.squared = false;
  return sum;
}

Tensor Sharded::Impl::squares_of(Unit& u) {
  const Tensor sum = cleared_sum(u), out{squares.data() + u.owned_at / 64 * sizeof(double), Dtype::f64, {sum.size() / 64}, &backend};
  if (!u.squared && sum.size()) backend.square_sums(out, sum);
  u.squared = true;
  return out;
}

// The owner's sum += the gradients of all ranks. What is stale is cleared just before: it is then in the cache for the addition.
void Sharded::Impl::add_up(Unit& u, Tensor gradient) {
  if (comm.size() == 1) return backend.accumulate(cleared_sum(u), gradient);
  const size_t me = size_t(comm.rank());
  const Range mine = u.trainable_parts[me];
  float* const sum = reinterpret_cast<float*>(sums.data()) + u.owned_at + (strategy.shard_over_world ? 0 : mine.begin);
  if (u.sum == Sum::stale && mine.size()) backend.fill_zero({sum, Dtype::f32, {int64_t(mine.size())}, &backend});
  comm.reduce_scatter(sum, gradient.as<float>(), u.trainable_parts);
  if (strategy.shard_over_world) return;
  comm.all_gather(reinterpret_cast<std::byte*>(sum - mine.begin), scaled(u.trainable_parts, sizeof(float)));
  if (on_device) backend.wait(Lane::compute, backend.now(Lane::exchange));
}

// Ahead of its use, after all that was computed with what the slot held before.
void Sharded::Impl::copy_frozen(Slot& slot, const Unit& u) {
  backend.wait(Lane::to_device, backend.now(Lane::compute));
  backend.copy_beside(slot.memory.data(), window.data() + u.frozen_at + stays(u), u.size.frozen_bytes - stays(u));
  slot.moment = backend.now(Lane::to_device);
}

// On a host: on the mover's thread.
void Sharded::Impl::gather(Comm& group, Slot* to, Slot* values_to, const Unit& u) {
  if (to) group.all_gather_from(to->memory.data(), u.frozen_parts, shards.data() + u.frozen_at);
  const size_t width = size_of(compute);
  if (values_to)
    group.all_gather_from(values_to->memory.data(), scaled(u.trainable_parts, width), compute_values().data() + u.owned_at * width);
}

// Claims slots for the unit and lets what is not there move in. Nothing when all slots are held.
std::optional<Sharded::Impl::Held> Sharded::Impl::bring(int unit) {
  const Unit& u = at(unit);
  Held held;
  if (frozen && !(held.frozen = frozen->claim(unit))) return std::nullopt;
  if (trainable && !(held.trainable = trainable->claim(unit))) return std::nullopt;
  const auto moves = [](Slot* slot, bool any) { return slot && any && !std::exchange(slot->here, true) ? slot : nullptr; };
  Slot *to = moves(held.frozen, u.size.frozen_bytes), *values_to = moves(held.trainable, u.size.trainable);
  if (to && offloads) copy_frozen(*std::exchange(to, nullptr), u);
  if (!to && !values_to) return held;
  if (mover) {
    const auto ticket = mover->post([this, to, values_to, &u](Comm& group) { gather(group, to, values_to, u); });
    for (Slot* slot : {to, values_to})
      if (slot) slot->ticket = ticket;
  } else {
    gather(comm, to, values_to, u);
    for (Slot* slot : {to, values_to})
      if (slot) slot->moment = backend.now(Lane::exchange);
  }
  return held;
}

void Sharded::Impl::wait_for(const Slot* slot) {
  if (!slot) return;
  if (mover)
    mover->wait(slot->ticket);
  else
    backend.wait(Lane::compute, slot->moment);
}

void Sharded::Impl::wait_for_moves() {
  if (mover) mover->wait_all();
  if (on_device && trainable) backend.wait(Lane::compute, backend.now(Lane::exchange));
}

void Sharded::Impl::refresh_copies() {
  if (!copies || !owned_total) return;
  const Shape all{int64_t(owned_total)};
  const Tensor to{copies.data(), compute, all, &backend}, from{masters.data(), Dtype::f32, all, &masters_home};
  if (&masters_home == &backend) return backend.convert(to, from);
  const Buffer rounded = masters_home.reserve(to.bytes(), "trainable values in compute precision");
  masters_home.convert({rounded.data(), compute, all, &masters_home}, from);
  backend.copy(to.data, rounded.data(), to.bytes());
}

Sharded::Sharded(Comm& comm, Backend& backend, const Strategy& strategy, std::vector<UnitSize> sizes, Dtype compute, FrozenPlace place,
                 Backend* masters_home)
    : impl_(std::make_unique<Impl>(comm, backend, strategy, std::move(sizes), compute, place, masters_home)) {}
Sharded::~Sharded() = default;

int Sharded::units() const { return int(impl_->units.size()); }
Range Sharded::frozen_range(int unit) const { return impl_->at(unit).frozen_mine; }
Range Sharded::trainable_range(int unit) const { return impl_->at(unit).owned; }

std::byte* Sharded::frozen_shard(int unit) {
  const Impl::Unit& u = impl_->at(unit);
  if (u.frozen_mine.size() == 0) return nullptr;
  return impl_->in_window ? impl_->window.data() + u.frozen_at + u.frozen_mine.begin : impl_->shards.data() + u.frozen_at;
}

Tensor Sharded::values(int unit) { return impl_->owned_of(impl_->masters, impl_->at(unit), Dtype::f32, &impl_->masters_home); }
Tensor Sharded::gradients(int unit) { return impl_->cleared_sum(impl_->at(unit)); }

Tensor Sharded::square_sums(int unit) { return impl_->squares_of(impl_->at(unit)); }

Tensor Sharded::copies(int unit) {
  return impl_->copies ? impl_->owned_of(impl_->copies, impl_->at(unit), impl_->compute, &impl_->backend) : Tensor{};
}

void Sharded::loaded() {
  Impl& m = *impl_;
  m.comm.barrier();
  if (m.node) m.fill_other_nodes();
  refresh();
  if (m.frozen) m.frozen->forget();
}

void Sharded::prefetch(int unit) {
  if (unit < 0 || unit >= units()) return;
  if (const auto held = impl_->bring(unit))
    for (Slot* slot : {held->frozen, held->trainable})
      if (slot) slot->waiting = !slot->held;
}

Sharded::View Sharded::acquire(int unit) {
  Impl& m = *impl_;
  const Impl::Unit& u = m.at(unit);
  const auto held = m.bring(unit);
  assert(held && "three ordinary units are acquired at once");
  for (Slot* slot : {held->frozen, held->trainable}) {
    if (!slot) continue;
    slot->waiting = false;
    slot->held = true;
    m.wait_for(slot);
  }
  View view;
  if (u.size.frozen_bytes)
    view.frozen = m.moves_frozen ? held->frozen->memory.data() : (m.in_window ? m.window : m.shards).data() + u.frozen_at;
  if (m.stays(u)) view.frozen -= m.stays(u), view.looked_up = m.window.data() + u.frozen_at;
  if (u.size.trainable)
    view.trainable = m.moves_trainable ? held->trainable->memory.data() : m.compute_values().data() + u.owned_at * size_of(m.compute);
  return view;
}

// A kept unit has a slot of its own, where it stays; so both uses only end the hold.
void Sharded::release(int unit, bool) {
  for (auto* slots : {&impl_->frozen, &impl_->trainable})
    if (Slot* slot = *slots ? (*slots)->find(unit) : nullptr) slot->held = false;
}

Tensor Sharded::gradient(int unit) {
  Impl& m = *impl_;
  Impl::Unit& u = m.at(unit);
  if (u.size.trainable == 0) return {nullptr, Dtype::f32, {0}, &m.backend};
  Impl::Scratch& s = m.scratch[m.scratch_of[size_t(unit)]];
  if (m.comm.size() == 1 && s.unit != unit && u.sum != Impl::Sum::summed) {
    u.sums_in_place = true;
    return m.cleared_sum(u);
  }
  const Tensor whole{s.memory.data(), Dtype::f32, {u.size.trainable}, &m.backend};
  if (s.unit == unit) return whole;
  assert(s.unit == -1 && "the gradient of another unit was not reduced");
  s.unit = unit;
  m.backend.fill_zero(whole);
  return whole;
}

void Sharded::reduce(int unit) {
  Impl& m = *impl_;
  Impl::Unit& u = m.at(unit);
  if (u.size.trainable == 0) return;
  const Tensor whole = gradient(unit);
  const bool first = u.sum != Impl::Sum::summed;
  if (!u.sums_in_place) m.add_up(u, whole);
  u.sum = Impl::Sum::summed;
  u.sums_in_place = u.squared = false;
  if (first) m.squares_of(u);  // the sum is in the cache now, and often the first gradient is all of it
  m.scratch[m.scratch_of[size_t(unit)]].unit = -1;
}

void Sharded::zero_gradients() {
  for (Impl::Unit& u : impl_->units) {
    assert(!u.sums_in_place && "a gradient was not reduced");
    if (u.sum == Impl::Sum::summed) u.sum = Impl::Sum::stale;
  }
}

void Sharded::refresh() {
  impl_->wait_for_moves();
  impl_->refresh_copies();
  updated();
}

void Sharded::updated() {
  impl_->wait_for_moves();
  if (impl_->trainable) impl_->trainable->forget();
}

bool Sharded::counts_once(int) const { return impl_->strategy.shard_over_world || impl_->comm.rank() == 0; }

size_t Sharded::bytes() const {
  const Impl& m = *impl_;
  size_t sum = m.shards.bytes() + m.masters.bytes() + m.sums.bytes() + m.squares.bytes() + m.copies.bytes();
  if (m.in_window) sum += m.window.bytes() / size_t(m.sharers);
  for (const Impl::Scratch& s : m.scratch) sum += s.memory.bytes();
  for (const auto* slots : {&m.frozen, &m.trainable})
    if (*slots) sum += (*slots)->bytes();
  return sum;
}

Comm& Sharded::comm() { return impl_->comm; }

}  // namespace tessera
