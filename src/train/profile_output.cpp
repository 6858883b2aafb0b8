#include "train/profile_output.h"

#include <algorithm>

#include "backend/profile_table.h"
#include "core/log.h"
#include "core/text.h"
#include "io/file.h"

namespace tessera {

void report_profile(const Profile& profile, Comm& comm, const std::string& folder) {
  const auto starts = gather_values(comm, profile.start());
  const auto traces = gather_strings(comm, profile.trace(*std::min_element(starts.begin(), starts.end())));
  if (comm.rank() != 0) return;
  const std::string path = str(folder, "/", profile_name);
  write_file_atomic(path, trace_file(traces));
  say(comm.size() > 1 ? "profile of rank 0" : "profile");
  for (const std::string& line : profile_text(profile.average(), profile.limits)) say(str("  ", line));
  say(str("trace    ", path, ": ", profile.traced_steps(), " steps, for ui.perfetto.dev or chrome://tracing"));
}

}  // namespace tessera
