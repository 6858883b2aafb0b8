// A roll call: when a rank of a group has waited too long, the ranks that wait tell each other so, and who does not answer is missing. It
// uses messages of a tag of its own on the group's communicator, which pass whatever the group's collectives are stuck in. It happens once:
// the group ends with it. Inside comm only.
#pragma once
#include <mpi.h>

#include <optional>
#include <vector>

#include "core/activity.h"

namespace tessera {

enum class Call : int32_t { start, all_gather, reduce_scatter, broadcast, barrier };
const char* name_of(Call);

struct RollAnswer {
  Activity doing = Activity::starting;
  Call call = Call::start;  // where it waits: the `number`-th exchange of the group
  int64_t number = 0;
};

bool roll_called(MPI_Comm);  // another rank has begun
// Answers and asks, listens for `seconds` at most. By rank; this rank's is `mine`.
std::vector<std::optional<RollAnswer>> call_roll(MPI_Comm, const RollAnswer& mine, double seconds);

}  // namespace tessera
