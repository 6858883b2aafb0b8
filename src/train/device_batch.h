// A batch in the memory of a device: one copy, made before the first operation, so that nothing later has to be sent. And the micro-batches
// of a training step, whose losses come back in one copy at its end.
#pragma once
#include <vector>

#include "core/arena.h"
#include "core/buffer.h"
#include "data/loader.h"
#include "nn/root.h"

namespace tessera {

struct DeviceBatch {
  Tensor ids, positions, starts;  // (B, T) i32
  Tensor row_keys;                // (B) i64
  Targets targets;
  Tensor losses;  // one for each target, to be filled
};
DeviceBatch to_device(const Batch&, Arena&);

// A list of numbers (n) i32 in the memory of a device.
Tensor to_device(const std::vector<int32_t>&, Arena&, const char* name);

// Sum in double, rows in order. The host waits for what was given to the device.
double sum_of_losses(Tensor losses);

// What a training step sends to a device and has back from it, without a wait of the host in between: batches lie in pinned memory until
// take(), because the device reads them later; losses lie on the device until then, outside the arena. Where the host can read the device's
// memory nothing lies anywhere: losses are summed when they come.
class StepBatches {
 public:
  explicit StepBatches(Backend& backend) : backend_(backend) {}
  ~StepBatches();
  StepBatches(const StepBatches&) = delete;
  StepBatches& operator=(const StepBatches&) = delete;

  // Room for the micro-batches of a step. One that finds no room waits for those before it, and a larger one for room of its own.
  void reserve(int64_t micro_batches, int64_t rows, int64_t tokens);
  DeviceBatch send(const Batch&, Arena&);
  // Once for each micro-batch, when all that fills its losses has been given to the device. Empty: a rank without rows.
  void add(Tensor losses);
  // The sum of each micro-batch's losses since the last call, as sum_of_losses(). The host waits.
  std::vector<double> take();

 private:
  void read_back();
  void make_room(size_t host, size_t losses);  // bytes

  Backend& backend_;
  Buffer host_, losses_;
  size_t host_used_ = 0, losses_used_ = 0;
  std::vector<size_t> counts_;  // of the losses that are on the device
  std::vector<double> sums_;
};

}  // namespace tessera
