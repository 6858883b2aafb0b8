// What is said when ranks did not come to an exchange in time. Inside comm only.
#pragma once
#include <string>
#include <vector>

#include "core/activity.h"

namespace tessera {

struct RankState {
  int number = 0;    // rank of the run
  bool here = true;  // it waits; else it is missing
  bool seen = true;  // `doing` is known
  Activity doing = Activity::starting;
  std::string more;  // "process 4321, stopped"; "" when nothing is known
};

// The four parts of the error. call: "all_gather 57".
std::string lost_ranks_text(const std::string& call, double seconds, std::vector<RankState> states);

// "process 4321, stopped", from /proc; "" for 0.
std::string process_text(int64_t process);

}  // namespace tessera
