#include "fsdp/slots.h"

#include <algorithm>
#include <tuple>

namespace tessera {

Slots::Slots(Backend& backend, const std::vector<Need>& needs, const char* what) {
  const auto add = [&](size_t bytes) {
    Slot slot;
    if (bytes) slot.memory = backend.allocate(bytes, what);
    slots_.push_back(std::move(slot));
  };
  size_t largest = 0;
  int ordinary = 0;
  for (const Need& need : needs) {
    if (need.own) continue;
    largest = std::max(largest, need.bytes);
    ++ordinary;
  }
  rotating_ = std::min(ordinary, 2);
  for (int i = 0; i < rotating_; ++i) add(largest);
  for (const Need& need : needs) {
    own_.push_back(need.own ? int(slots_.size()) : -1);
    if (need.own) add(need.bytes);
  }
}

Slot* Slots::find(int unit) {
  for (Slot& slot : slots_)
    if (slot.unit == unit) return &slot;
  return nullptr;
}

Slot* Slots::claim(int unit) {
  Slot* slot = find(unit);
  if (!slot && own_[size_t(unit)] >= 0) slot = &slots_[size_t(own_[size_t(unit)])];
  if (!slot) {
    for (int i = 0; i < rotating_; ++i) {
      Slot& s = slots_[size_t(i)];
      if (s.held) continue;
      if (!slot || std::tie(s.waiting, s.order) < std::tie(slot->waiting, slot->order)) slot = &s;
    }
    if (!slot) return nullptr;
  }
  if (slot->unit != unit) {
    slot->unit = unit;
    slot->here = slot->waiting = false;
  }
  slot->order = ++claims_;
  return slot;
}

void Slots::forget() {
  for (Slot& slot : slots_) slot.here = false;
}

size_t Slots::bytes() const {
  size_t sum = 0;
  for (const Slot& slot : slots_) sum += slot.memory.bytes();
  return sum;
}

}  // namespace tessera
