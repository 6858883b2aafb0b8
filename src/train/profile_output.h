// What a profiled run leaves: the table of rank 0, and profile.json, a trace of every rank in Chrome's format (chrome://tracing, Perfetto).
#pragma once
#include <string>

#include "backend/profile.h"
#include "comm/comm.h"

namespace tessera {

inline constexpr const char* profile_name = "profile.json";

// Says the table and writes the trace into folder. Collective.
void report_profile(const Profile&, Comm&, const std::string& folder);

}  // namespace tessera
