// A batch in the memory of a device: one copy, made before the first operation, so that nothing later has to be sent.
#pragma once
#include "core/arena.h"
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

}  // namespace tessera
