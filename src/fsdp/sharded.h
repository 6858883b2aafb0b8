// Sharded: the bytes of all units (decoder layers and the root) spread over the ranks, and their movement. It knows bytes, not layers.
//
// A unit is two flat buffers: frozen bytes, and trainable values (f32 masters, their gradients; the optimizer keeps its states beside).
// Frozen bytes: when all ranks are on one node they live once per node in a shared window, each rank fills its part, and acquire() returns
//   a pointer; otherwise (or when asked, for tests) every rank holds a shard and acquire() gathers into one of two buffers.
// Trainable values: each rank owns one range of 64-element blocks (all of it under ddp). acquire() gives the whole unit in compute dtype.
// Gradients: gradient() is a whole-unit f32 scratch the backward pass adds to; reduce() adds every rank's scratch, in rank order, into the
//   owner's sum. So a rank's memory for a unit's gradient is its shard plus one scratch. One rank needs no scratch for the first gradient
//   of a step: it is added to the sum, which is zero (0 + g is g); later ones go through the scratch, so that each is a sum of its own.
//
// Order per pass: prefetch(next) may be called before use; acquire -> use -> release; reduce after backward. The same order on all ranks.
// prefetch runs on a thread of its own with its own Comm, while this thread computes. Not thread-safe otherwise.
//
// On a device (Backend::host_can_read() is false) all of it is device memory, the group must take such memory, and prefetch gives the work
// to a lane of the device: Lane::exchange, or Lane::to_device for frozen bytes that stand on the host. What acquire() returns is there for
// everything Lane::compute is given from then on. A slot that is filled again waits for all that Lane::compute was given before.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "comm/comm.h"
#include "fsdp/strategy.h"

namespace tessera {

struct UnitSize {
  size_t frozen_bytes = 0;  // padded by the caller to a multiple of 256
  int64_t trainable = 0;    // f32 elements, padded to a multiple of 64
  bool resident = false;    // gathered at the first acquire and kept for the whole pass (the root: embedding, final norm, head)
  size_t looked_up = 0;     // the first so many frozen bytes are only looked up, a row here and there: the embedding. A multiple of 256
};

// gathered: shards and gathers even on one node (tests).
// host, of a device: once per node in pinned host memory, from where each unit is copied to the device before its use. Elsewhere automatic.
enum class FrozenPlace { automatic, gathered, host };

class Sharded {
 public:
  // masters_home: of a device, a host's backend in whose memory (pinned) the masters live; null: they live on the device.
  Sharded(Comm&, Backend&, const Strategy&, std::vector<UnitSize>, Dtype compute, FrozenPlace = FrozenPlace::automatic,
          Backend* masters_home = nullptr);
  ~Sharded();
  int units() const;

  // --- loading: each rank fills its own ranges, then all call loaded() ---
  Range frozen_range(int unit) const;     // bytes of the unit this rank fills
  std::byte* frozen_shard(int unit);      // where byte frozen_range().begin goes: the host's or the device's memory, see Backend::copy
  Range trainable_range(int unit) const;  // elements of the unit this rank owns
  Tensor values(int unit);                // owned masters, f32 (range size)
  Tensor copies(int unit);                // the same in compute dtype; empty when values() are that. Who writes values may write these too
  Tensor gradients(int unit);             // owned gradient sums, f32 (range size), to be read; zero_gradients() between steps
  Tensor square_sums(int unit);           // f64, of each 64 of them: the sum of their squares
  void loaded();                          // collective: fences the window, refreshes the compute copies of the masters

  // --- a pass ---
  struct View {
    const std::byte* frozen = nullptr;     // the unit's frozen bytes; not the first of them where `looked_up` is given
    std::byte* trainable = nullptr;        // the unit's values in compute dtype
    const std::byte* looked_up = nullptr;  // with FrozenPlace::host: the first UnitSize::looked_up frozen bytes, in pinned host memory
  };
  void prefetch(int unit);                // starts gathering; no effect when nothing has to move or the unit is out of range
  View acquire(int unit);                 // waits for it
  void release(int unit, bool last_use);  // forward: false; backward: true. Kept strategies hold on until the last use
  Tensor gradient(int unit);              // whole unit, f32, to be added to; zero at the first call after a reduce
  void reduce(int unit);                  // gradient sums (owned) += every rank's gradient in rank order. Collective
  void zero_gradients();                  // the sums count as zero from here on; each is filled when it is next used
  void refresh();                         // copies = values, and updated()
  void updated();                         // after values and copies have changed: what was gathered before is stale

  // --- accounting ---
  bool counts_once(int unit) const;  // this rank's owned range is counted in global sums (under ddp only rank 0 counts)
  size_t bytes() const;              // all memory of this rank, host and device, the node's window counted 1 / ranks of the node
  Comm& comm();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
