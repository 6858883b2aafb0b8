// Slots: the buffers into which one kind of bytes of the units (frozen, or trainable) is moved, and what stands in them. Inside fsdp only.
// An ordinary unit gets one of two rotating slots; a resident unit, or any unit of a strategy that keeps, has its own.
// Which slot a unit gets depends on the order of calls alone, never on timing: it is the same on all ranks.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "core/buffer.h"
#include "fsdp/mover.h"

namespace tessera {

struct Slot {
  Buffer memory;  // empty where nothing has to move
  int unit = -1;
  bool here = false;         // moved in, or on the way until `ticket` or `moment`
  bool held = false;         // between acquire and release
  bool waiting = false;      // prefetched and not acquired yet
  uint64_t order = 0;        // of the last claim
  Mover::Ticket ticket = 0;  // of a host
  Moment moment = 0;         // of a device
};

class Slots {
 public:
  struct Need {
    size_t bytes = 0;
    bool own = false;
  };
  Slots(Backend&, const std::vector<Need>&, const char* what);

  Slot* find(int unit);   // the slot that holds or will hold the unit, or null
  Slot* claim(int unit);  // that slot, else its own, else the rotating slot that is free and was claimed first; null: all are held
  void forget();          // what stands in them is stale
  size_t bytes() const;

 private:
  std::vector<Slot> slots_;  // rotating ones first
  std::vector<int> own_;     // of each unit: index of its own slot, or -1
  int rotating_ = 0;
  uint64_t claims_ = 0;
};

}  // namespace tessera
