// The profile of a step as lines of text: phases, operations, and shapes, where most time is lost first.
#pragma once
#include <string>
#include <vector>

#include "backend/profile.h"

namespace tessera {

// Calls that are shown in one line. limit_seconds: what the calls would take at the limit. Pseudo rows (time outside operations) have no
// calls and a limit of 0.
struct ProfileLine {
  std::string name;
  double calls = 0, seconds = 0, flops = 0, bytes = 0, limit_seconds = 0;  // per step
  double bound_by_flops = 0;                                               // the part of limit_seconds where FLOPs are the limit
  double lost() const { return seconds - limit_seconds; }
};

// One line per operation and dtype, and one each for what passes outside operations and for waiting: their seconds add up to the step's.
std::vector<ProfileLine> lines_by_operation(const StepProfile&, const ProfileLimits&);
// One line per operation, dtype and shape.
std::vector<ProfileLine> lines_by_shape(const StepProfile&, const ProfileLimits&);

std::vector<std::string> profile_text(const StepProfile&, const ProfileLimits&);

}  // namespace tessera
