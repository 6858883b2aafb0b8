// Arena: bump allocation from one buffer of a backend. Not thread-safe. Activations and scratch of a step are taken from it and given
// back by rewinding, so "what did this step need" is one number, high_water(). (CPU kernels keep small packing buffers of their own.)
#pragma once
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/tensor.h"

namespace tessera {

class Arena {
 public:
  using Mark = size_t;

  // ledger: where what is taken stands, by label; null: nowhere.
  Arena(Backend* home, Buffer memory, Ledger* ledger = nullptr);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Memory for a tensor, 64-byte aligned, contents undefined. `name` is kept for messages (a literal).
  // Throws Error that names the largest holders when the buffer is full.
  Tensor take(Dtype, Shape, const char* name);

  // What the tensors taken from now on are, in the ledger: "saved activations", ... Returns the label until now.
  const char* relabel(const char* label) { return std::exchange(label_, label); }

  Mark mark() const { return top_; }
  void rewind(Mark);                                 // REQUIRES: marks are rewound newest first
  size_t used() const { return top_; }               // bytes taken now
  size_t high_water() const { return high_water_; }  // most bytes ever taken at once
  size_t capacity() const { return memory_.bytes(); }

 private:
  struct Holder {
    const char* name;
    size_t begin, bytes;
    int account;
  };
  [[noreturn]] void out_of_memory(size_t bytes, const char* name) const;

  Backend* home_;
  Buffer memory_;
  Ledger* ledger_;
  const char* label_ = "scratch";
  size_t top_ = 0, high_water_ = 0;
  std::vector<Holder> holders_;
};

// Rewinds an arena at the end of a scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

// A label of an arena until the end of a scope.
class ArenaLabel {
 public:
  ArenaLabel(Arena& arena, const char* label) : arena_(arena), before_(arena.relabel(label)) {}
  ~ArenaLabel() { arena_.relabel(before_); }
  ArenaLabel(const ArenaLabel&) = delete;
  ArenaLabel& operator=(const ArenaLabel&) = delete;

 private:
  Arena& arena_;
  const char* before_;
};

}  // namespace tessera
