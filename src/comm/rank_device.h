// Which device a rank computes on.
#pragma once
#include <string>
#include <vector>

#include "comm/comm.h"

namespace tessera {

// asked: "cuda", "cuda:N" (one rank per node only), or "auto": GPUs where every rank finds one, the CPU where none does. What make_backend
// takes: "cpu" or "cuda:N", a GPU that no other rank of the node has. Throws Error when a node has more ranks than GPUs. Any other text
// is returned as it is. Collective.
std::string rank_device(const std::string& asked, Comm&);

// The GPUs that this process may use, in the order of their numbers, by names that do not depend on who asks: bus addresses.
std::vector<std::string> usable_gpus();

// gpus: what each rank of a node may use. The number, of its own, of the GPU that each gets: the first that no rank before it has; -1:
// none.
std::vector<int> assign_gpus(const std::vector<std::vector<std::string>>& gpus);

}  // namespace tessera
