// NcclComm: a device group of processes with one GPU each. Gathers go in place as bytes; sums are exchanges of parts and the backend's own
// additions in rank order, because the order of NCCL's sums depends on the number of ranks and on its choice of algorithm.
#pragma once
#include "comm/device_comm.h"
#include "comm/nccl_library.h"

namespace tessera {

// Collective. The library outlives the group.
std::unique_ptr<Comm> make_nccl_comm(Comm& host, Backend&, const NcclLibrary&);

}  // namespace tessera
