#include "fsdp/sharded.h"

#include <algorithm>
#include <cassert>
#include <optional>

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
  Impl(Comm& c, Backend& b, const Strategy& s, std::vector<UnitSize> sizes, Dtype dtype, FrozenPlace place);
  void place_units(const std::vector<UnitSize>& sizes);
  void allocate_all();
  void allocate_scratch();
  void make_slots();
  Slot* gather(int unit);
  void move(Comm& group, Slot& slot, const Unit& u, bool frozen, bool trainable);
  Tensor owned_of(const Buffer& memory, const Unit& u, Dtype dtype) const;
  Tensor cleared_sum(Unit& u);
  Tensor squares_of(Unit& u);
  void add_up(Unit& u, Tensor gradient);
  const Buffer& compute_values() const { return compute == Dtype::f32 ? masters : copies; }
  Unit& at(int unit) {
    assert(unit >= 0 && size_t(unit) < units.size());
    return units[size_t(unit)];
  }

  Comm& comm;
  Backend& backend;
  const Strategy strategy;
  const Dtype compute;
  const bool in_window, moves_frozen, moves_trainable;
  std::vector<Unit> units;
  size_t frozen_total = 0, owned_total = 0;  // bytes of the window or of the shards; elements

  Buffer window;
  Buffer shards, masters, sums, copies;
  Buffer squares;                  // f64, one for 64 sums
  std::vector<Scratch> scratch;    // [0] serves all ordinary units
  std::vector<size_t> scratch_of;  // of each unit
  std::optional<Slots> slots;      // absent when nothing has to move
  std::optional<Mover> mover;      // last: its thread ends before what it writes to
};

Sharded::Impl::Impl(Comm& c, Backend& b, const Strategy& s, std::vector<UnitSize> sizes, Dtype dtype, FrozenPlace place)
    : comm(c),
      backend(b),
      strategy(s),
      compute(dtype),
      in_window(c.size() > 1 && c.nodes() == 1 && place == FrozenPlace::automatic),
      moves_frozen(c.size() > 1 && !in_window),
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

void Sharded::Impl::allocate_all() {
  if (in_window) {
    window = comm.shared_window(frozen_total);
    window.charge(backend.ledger(), "frozen weights", frozen_total / size_t(comm.size()));  // the ranks of the node share it
  } else {
    shards = allocate(backend, frozen_total, "frozen weights");
  }
  masters = allocate(backend, owned_total * sizeof(float), "trainable values");
  sums = allocate(backend, owned_total * sizeof(float), "gradients");
  squares = allocate(backend, owned_total / 64 * sizeof(double), "squares of gradients");
  if (compute != Dtype::f32) copies = allocate(backend, owned_total * size_of(compute), "trainable values in compute precision");
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

void Sharded::Impl::make_slots() {
  std::vector<Slots::Need> needs;
  size_t moved = 0;
  for (const Unit& u : units) {
    Slots::Need need;
    if (moves_frozen) need.frozen = u.size.frozen_bytes;
    if (moves_trainable) need.trainable = size_t(u.size.trainable) * size_of(compute);
    need.own = u.size.resident || strategy.keep_after_forward;
    moved += need.frozen + need.trainable;
    needs.push_back(need);
  }
  if (moved == 0) return;
  slots.emplace(backend, needs);
  mover.emplace(comm.split(0, comm.rank()));
}

Tensor Sharded::Impl::owned_of(const Buffer& memory, const Unit& u, Dtype dtype) const {
  std::byte* data = u.owned.size() ? memory.data() + u.owned_at * size_of(dtype) : nullptr;
  return {data, dtype, {int64_t(u.owned.size())}, &backend};
}

// The owner's sum; what is stale becomes zero.
Tensor Sharded::Impl::cleared_sum(Unit& u) {
  const Tensor sum = owned_of(sums, u, Dtype::f32);
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
  if (!strategy.shard_over_world) comm.all_gather(reinterpret_cast<std::byte*>(sum - mine.begin), scaled(u.trainable_parts, sizeof(float)));
}

// On the mover's thread.
void Sharded::Impl::move(Comm& group, Slot& slot, const Unit& u, bool frozen, bool trainable) {
  if (frozen) group.all_gather_from(slot.frozen.data(), u.frozen_parts, shards.data() + u.frozen_at);
  const size_t width = size_of(compute);
  if (trainable)
    group.all_gather_from(slot.trainable.data(), scaled(u.trainable_parts, width), compute_values().data() + u.owned_at * width);
}

// Claims a slot for the unit and posts the gather of what is not there. Null when all slots are held.
Slot* Sharded::Impl::gather(int unit) {
  const Unit& u = at(unit);
  Slot* slot = slots->claim(unit);
  if (!slot) return nullptr;
  const bool frozen = moves_frozen && u.size.frozen_bytes && !slot->frozen_here;
  const bool trainable = moves_trainable && u.size.trainable && !slot->trainable_here;
  slot->frozen_here = slot->trainable_here = true;
  if (frozen || trainable)
    slot->ticket = mover->post([this, slot, &u, frozen, trainable](Comm& group) { move(group, *slot, u, frozen, trainable); });
  return slot;
}

Sharded::Sharded(Comm& comm, Backend& backend, const Strategy& strategy, std::vector<UnitSize> sizes, Dtype compute, FrozenPlace place)
    : impl_(std::make_unique<Impl>(comm, backend, strategy, std::move(sizes), compute, place)) {}
Sharded::~Sharded() = default;

int Sharded::units() const { return int(impl_->units.size()); }
Range Sharded::frozen_range(int unit) const { return impl_->at(unit).frozen_mine; }
Range Sharded::trainable_range(int unit) const { return impl_->at(unit).owned; }

std::byte* Sharded::frozen_shard(int unit) {
  const Unit& u = impl_->at(unit);
  if (u.frozen_mine.size() == 0) return nullptr;
  return impl_->in_window ? impl_->window.data() + u.frozen_at + u.frozen_mine.begin : impl_->shards.data() + u.frozen_at;
}

Tensor Sharded::values(int unit) { return impl_->owned_of(impl_->masters, impl_->at(unit), Dtype::f32); }
Tensor Sharded::gradients(int unit) { return impl_->cleared_sum(impl_->at(unit)); }

Tensor Sharded::square_sums(int unit) { return impl_->squares_of(impl_->at(unit)); }

Tensor Sharded::copies(int unit) {
  return impl_->compute == Dtype::f32 ? Tensor{} : impl_->owned_of(impl_->copies, impl_->at(unit), impl_->compute);
}

void Sharded::loaded() {
  impl_->comm.barrier();
  refresh();
  if (impl_->slots) impl_->slots->forget_frozen();
}

void Sharded::prefetch(int unit) {
  if (impl_->slots && unit >= 0 && unit < units())
    if (Slot* slot = impl_->gather(unit)) slot->waiting = !slot->held;
}

Sharded::View Sharded::acquire(int unit) {
  Impl& m = *impl_;
  const Unit& u = m.at(unit);
  Slot* slot = nullptr;
  if (m.slots) {
    slot = m.gather(unit);
    assert(slot && "three ordinary units are acquired at once");
    slot->waiting = false;
    slot->held = true;
    m.mover->wait(slot->ticket);
  }
  View view;
  if (u.size.frozen_bytes)
    view.frozen = m.moves_frozen ? slot->frozen.data() : (m.in_window ? m.window.data() : m.shards.data()) + u.frozen_at;
  if (u.size.trainable)
    view.trainable = m.moves_trainable ? slot->trainable.data() : m.compute_values().data() + u.owned_at * size_of(m.compute);
  return view;
}

// A kept unit has a slot of its own, where it stays; so both uses only end the hold.
void Sharded::release(int unit, bool) {
  if (!impl_->slots) return;
  if (Slot* slot = impl_->slots->find(unit)) slot->held = false;
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
  Impl& m = *impl_;
  if (m.mover) m.mover->wait_all();
  const Shape all{int64_t(m.owned_total)};
  if (m.compute != Dtype::f32 && m.owned_total)
    m.backend.convert({m.copies.data(), m.compute, all, &m.backend}, {m.masters.data(), Dtype::f32, all, &m.backend});
  updated();
}

void Sharded::updated() {
  if (impl_->mover) impl_->mover->wait_all();
  if (impl_->slots) impl_->slots->forget_trainable();
}

bool Sharded::counts_once(int) const { return impl_->strategy.shard_over_world || impl_->comm.rank() == 0; }

size_t Sharded::bytes() const {
  const Impl& m = *impl_;
  size_t sum = m.shards.bytes() + m.masters.bytes() + m.sums.bytes() + m.squares.bytes() + m.copies.bytes();
  if (m.in_window) sum += m.window.bytes() / size_t(m.comm.size());
  for (const Scratch& s : m.scratch) sum += s.memory.bytes();
  if (m.slots) sum += m.slots->bytes();
  return sum;
}

Comm& Sharded::comm() { return impl_->comm; }

}  // namespace tessera
