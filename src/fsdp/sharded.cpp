#include "fsdp/sharded.h"

#include <algorithm>
#include <cassert>
#include <optional>
#include <utility>

#include "fsdp/mover.h"
#include "fsdp/slots.h"

namespace tessera {
namespace {

// [0, n) in contiguous parts that are multiples of `grain` and differ by one grain at most; some are empty when n is small.
std::vector<Range> even_parts(size_t n, size_t grain, int ranks) {
  assert(n % grain == 0);
  const size_t grains = n / grain, world = size_t(ranks);
  std::vector<Range> parts;
  for (size_t r = 0; r < world; ++r) parts.push_back({grains * r / world * grain, grains * (r + 1) / world * grain});
  return parts;
}

std::vector<Range> scaled(std::vector<Range> parts, size_t factor) {
  for (Range& p : parts) p.begin *= factor, p.end *= factor;
  return parts;
}

enum class Sum { zero, summed, stale };  // stale: counts as zero, holds what it held

struct Unit {
  UnitSize size;
  std::vector<Range> frozen_parts;     // bytes
  std::vector<Range> trainable_parts;  // elements; what each rank sums, and owns unless every rank owns all
  Range frozen_mine, owned;
  size_t frozen_at = 0;  // of frozen_mine.begin in the shards, or of byte 0 in the window
  size_t owned_at = 0;   // element of owned.begin in masters, sums and copies
  Sum sum = Sum::zero;
  bool sums_in_place = false;  // gradient() gave the sum itself, and reduce() has not come yet
  bool squared = false;        // its square sums are those of the sum
};

struct Scratch {  // gradients of a whole unit
  Buffer memory;
  int unit = -1;
};

Buffer allocate(Backend& backend, size_t bytes, const char* what) { return bytes ? backend.allocate(bytes, what) : Buffer{}; }

}  // namespace

struct Sharded::Impl {
  Impl(Comm& c, Backend& b, const Strategy& s, std::vector<UnitSize> sizes, Dtype dtype, FrozenPlace place, Backend* masters_home);
  void place_units(const std::vector<UnitSize>& sizes);
  void open_window();
  void fill_other_nodes();
  void allocate_all();
  void allocate_scratch();
  void make_slots();
  struct Held {  // null: nothing of this kind moves
    Slot *frozen = nullptr, *trainable = nullptr;
  };
  std::optional<Held> bring(int unit);
  size_t stays(const Unit& u) const { return offloads ? u.size.looked_up : 0; }  // of its frozen bytes, on the host
  void copy_frozen(Slot& slot, const Unit& u);
  void gather(Comm& group, Slot* frozen, Slot* trainable, const Unit& u);
  void wait_for(const Slot* slot);
  void wait_for_moves();
  void refresh_copies();
  Tensor owned_of(const Buffer& memory, const Unit& u, Dtype dtype, Backend* home) const;
  Tensor cleared_sum(Unit& u);
  Tensor squares_of(Unit& u);
  void add_up(Unit& u, Tensor gradient);
  const Buffer& compute_values() const { return copies ? copies : masters; }
  Unit& at(int unit) {
    assert(unit >= 0 && size_t(unit) < units.size());
    return units[size_t(unit)];
  }

  Comm& comm;
  Backend& backend;
  Backend& masters_home;
  const Strategy strategy;
  const Dtype compute;
  const bool on_device, offloads, in_window, moves_frozen, moves_trainable;
  std::vector<Unit> units;
  size_t frozen_total = 0, owned_total = 0;  // bytes of the window or of the shards; elements

  std::unique_ptr<Comm> node;  // of this rank's node, when there are several and a window
  int sharers = 1;             // of the window
  Buffer window, pinned;       // the second makes the first quick to copy from
  Buffer shards, masters, sums, copies;
  Buffer squares;                          // f64, one for 64 sums
  std::vector<Scratch> scratch;            // [0] serves all ordinary units
  std::vector<size_t> scratch_of;          // of each unit
  std::optional<Slots> frozen, trainable;  // absent when nothing of the kind has to move
  std::optional<Mover> mover;              // of a host; last: its thread ends before what it writes to
};

Sharded::Impl::Impl(Comm& c, Backend& b, const Strategy& s, std::vector<UnitSize> sizes, Dtype dtype, FrozenPlace place, Backend* home)
    : comm(c),
      backend(b),
      masters_home(home && !b.host_can_read() ? *home : b),
      strategy(s),
      compute(dtype),
      on_device(!b.host_can_read()),
      offloads(on_device && place == FrozenPlace::host),
      in_window(offloads || (!on_device && c.size() > 1 && c.nodes() == 1 && place != FrozenPlace::gathered)),
      moves_frozen(offloads || (c.size() > 1 && !in_window)),
      moves_trainable(c.size() > 1 && s.shard_over_world) {
  assert(dtype == Dtype::f32 || dtype == Dtype::bf16);
  place_units(sizes);
  allocate_all();
  allocate_scratch();
  make_slots();
}

void Sharded::Impl::place_units(const std::vector<UnitSize>& sizes) {
  const size_t me = size_t(comm.rank());
  for (const UnitSize& size : sizes) {
    Unit u{size, even_parts(size.frozen_bytes, 256, comm.size()), even_parts(size_t(size.trainable), 64, comm.size()), {}, {}};
    u.frozen_mine = u.frozen_parts[me];
    u.owned = strategy.shard_over_world ? u.trainable_parts[me] : Range{0, size_t(size.trainable)};
    u.frozen_at = frozen_total;
    u.owned_at = owned_total;
    frozen_total += in_window ? size.frozen_bytes : u.frozen_mine.size();
    owned_total += u.owned.size();
    units.push_back(std::move(u));
  }
}

void Sharded::Impl::open_window() {
  if (comm.size() == 1) {
    window = frozen_total ? backend.reserve_pinned(frozen_total, "frozen weights") : Buffer{};
  } else {
    if (comm.nodes() > 1) node = comm.split(comm.node(), comm.rank());
    Comm& here = node ? *node : comm;
    window = here.shared_window(frozen_total);
    sharers = here.size();
    if (on_device && frozen_total) pinned = backend.pin(window.data(), frozen_total, "frozen weights");
  }
  window.charge(backend.host_ledger(), "frozen weights", frozen_total / size_t(sharers));  // the ranks of the node share it
}

// What the ranks of each node have filled goes to the other nodes, from one rank of each to one rank of each.
void Sharded::Impl::fill_other_nodes() {
  const std::vector<int64_t> nodes = gather_values(comm, int64_t(comm.node()));
  const bool leads = std::find(nodes.begin(), nodes.end(), comm.node()) - nodes.begin() == comm.rank();
  const auto leaders = comm.split(leads ? 0 : 1, comm.node());
  for (const Unit& u : units)
    for (size_t r = 0; leads && r < nodes.size(); ++r)
      leaders->broadcast(window.data() + u.frozen_at + u.frozen_parts[r].begin, u.frozen_parts[r].size(), int(nodes[r]));
  comm.barrier();
}

void Sharded::Impl::allocate_all() {
  if (in_window) {
    open_window();
  } else {
    shards = allocate(backend, frozen_total, "frozen weights");
  }
  const size_t master_bytes = owned_total * sizeof(float);
  if (&masters_home == &backend)
    masters = allocate(backend, master_bytes, "trainable values");
  else if (master_bytes)
    masters = backend.allocate_pinned(master_bytes, "trainable values");
  sums = allocate(backend, owned_total * sizeof(float), "gradients");
  squares = allocate(backend, owned_total / 64 * sizeof(double), "squares of gradients");
  if (compute != Dtype::f32 || &masters_home != &backend)
    copies = allocate(backend, owned_total * size_of(compute), "trainable values in compute precision");
}

void Sharded::Impl::allocate_scratch() {
  const auto bytes = [](const Unit& u) { return size_t(u.size.trainable) * sizeof(float); };
  size_t largest = 0;
  for (const Unit& u : units)
    if (!u.size.resident) largest = std::max(largest, bytes(u));
  scratch.push_back({allocate(backend, largest, "gradient of a layer")});
  for (const Unit& u : units) {
    scratch_of.push_back(u.size.resident ? scratch.size() : 0);
    if (u.size.resident) scratch.push_back({allocate(backend, bytes(u), "gradient of the embedding, norm and head")});
  }
}

// What is copied from this host is at hand: strategies that keep, keep what others would have to send again.
void Sharded::Impl::make_slots() {
  std::vector<Slots::Need> frozen_needs, trainable_needs;
  size_t frozen_moves = 0, trainable_moves = 0;
  for (const Unit& u : units) {
    const bool keeps = u.size.resident || strategy.keep_after_forward;
    frozen_needs.push_back({moves_frozen ? u.size.frozen_bytes - stays(u) : 0, offloads ? u.size.resident : keeps});
    trainable_needs.push_back({moves_trainable ? size_t(u.size.trainable) * size_of(compute) : 0, keeps});
    frozen_moves += frozen_needs.back().bytes, trainable_moves += trainable_needs.back().bytes;
  }
  if (frozen_moves) frozen.emplace(backend, frozen_needs, offloads ? "copied weights" : "gathered weights");
  if (trainable_moves) trainable.emplace(backend, trainable_needs, "gathered trainable values");
  if (!on_device && (frozen || trainable)) mover.emplace(comm.split(0, comm.rank()));
}

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
  backend.wait(Lane::copies, backend.now(Lane::compute));
  backend.copy_beside(slot.memory.data(), window.data() + u.frozen_at + stays(u), u.size.frozen_bytes - stays(u));
  slot.moment = backend.now(Lane::copies);
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
  const Unit& u = impl_->at(unit);
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
  const Unit& u = m.at(unit);
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
  Unit& u = m.at(unit);
  if (u.size.trainable == 0) return {nullptr, Dtype::f32, {0}, &m.backend};
  Scratch& s = m.scratch[m.scratch_of[size_t(unit)]];
  if (m.comm.size() == 1 && s.unit != unit && u.sum != Sum::summed) {
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
  Unit& u = m.at(unit);
  if (u.size.trainable == 0) return;
  const Tensor whole = gradient(unit);
  const bool first = u.sum != Sum::summed;
  if (!u.sums_in_place) m.add_up(u, whole);
  u.sum = Sum::summed;
  u.sums_in_place = u.squared = false;
  if (first) m.squares_of(u);  // the sum is in the cache now, and often the first gradient is all of it
  m.scratch[m.scratch_of[size_t(unit)]].unit = -1;
}

void Sharded::zero_gradients() {
  for (Unit& u : impl_->units) {
    assert(!u.sums_in_place && "a gradient was not reduced");
    if (u.sum == Sum::summed) u.sum = Sum::stale;
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
  for (const Scratch& s : m.scratch) sum += s.memory.bytes();
  for (const auto* slots : {&m.frozen, &m.trainable})
    if (*slots) sum += (*slots)->bytes();
  return sum;
}

Comm& Sharded::comm() { return impl_->comm; }

}  // namespace tessera
