// Groups whose exchanges also reach memory of a device (Backend::on_device). They stand beside the host's group, to which all calls with
// host memory, barriers, deadlines and the end of a run pass on.
//
// A call with device memory is given to Lane::exchange, after all that Lane::compute was given before it, and returns at once:
//   all_gather, all_gather_from, broadcast: complete with backend.now(Lane::exchange); who uses the buffer waits for that.
//   reduce_scatter: `sum` belongs to Lane::compute, which itself waits for what is exchanged; x may be written by Lane::compute at once.
// What copies beside have still to write or to read of it must have been waited for by Lane::compute or Lane::exchange.
// Sums are in rank order, the same bits as those of every other kind of group.
// Threads: as the backend, one thread at a time for a backend and all device groups on it.
#pragma once
#include <memory>

#include "backend/backend.h"
#include "comm/comm.h"

namespace tessera {

// Null when `host` itself serves: one rank, or memory that the host can read. Both outlive the group, and the backend its memory.
// Collective. Throws Error when several ranks have GPUs and there is no NCCL.
std::unique_ptr<Comm> make_device_comm(Comm& host, Backend&);

// What a device group takes from the backend for its sums, when the longest part of an array that it reduces has so many elements.
size_t device_exchange_bytes(int ranks, size_t longest_part);

}  // namespace tessera
