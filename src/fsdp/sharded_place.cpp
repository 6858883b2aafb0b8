// Where the bytes of units live: shards, the node's window, slots.
#include <algorithm>
#include <cassert>

#include "fsdp/sharded_impl.h"

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

Buffer allocate(Backend& backend, size_t bytes, const char* what) { return bytes ? backend.allocate(bytes, what) : Buffer{}; }

}  // namespace

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

}  // namespace tessera
