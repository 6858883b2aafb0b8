// What Sharded is made of. Inside fsdp only: sharded_place.cpp makes it, sharded.cpp moves and adds.
#pragma once
#include <cassert>
#include <optional>

#include "fsdp/mover.h"
#include "fsdp/sharded.h"
#include "fsdp/slots.h"

namespace tessera {

struct Sharded::Impl {
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

}  // namespace tessera
