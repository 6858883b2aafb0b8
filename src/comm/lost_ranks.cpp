#include "comm/lost_ranks.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

std::string rank_names(const std::vector<int>& ranks) {
  std::vector<std::string> names;
  for (const int r : ranks) names.push_back(str(r));
  return str(ranks.size() == 1 ? "rank " : "ranks ", join(names, ", "));
}

std::string place_of(const RankState& s) {
  const std::string doing = s.seen ? str("in phase ", name_of(s.doing)) : "in a phase that is not known";
  return s.more.empty() ? doing : str(doing, " (", s.more, ")");
}

// "ranks 0, 2 in phase forward, rank 3 in phase saving": ranks of one place together, in the order of the first of them.
std::string places(const std::vector<RankState>& states, bool here) {
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (const RankState& s : states) {
    if (s.here != here) continue;
    const std::string place = place_of(s);
    auto group = groups.begin();
    while (group != groups.end() && group->first != place) ++group;
    if (group == groups.end()) group = groups.insert(group, {place, {}});
    group->second.push_back(s.number);
  }
  std::vector<std::string> texts;
  for (const auto& [place, ranks] : groups) texts.push_back(str(rank_names(ranks), ' ', place));
  return join(texts, ", ");
}

const char* state_name(char letter) {
  switch (letter) {
    case 'R':
      return "computing";
    case 'S':
    case 'D':
      return "asleep";
    case 'T':
    case 't':
      return "stopped";
    default:
      return "ended";
  }
}

}  // namespace

std::string lost_ranks_text(const std::string& call, double seconds, std::vector<RankState> states) {
  std::sort(states.begin(), states.end(), [](const RankState& a, const RankState& b) { return a.number < b.number; });
  std::vector<int> missing;
  for (const RankState& s : states)
    if (!s.here) missing.push_back(s.number);
  const std::string waiting = str("waiting: ", places(states, true));
  const std::string where = missing.empty() ? call : rank_names(missing);
  const std::string given =
      missing.empty() ? str("took longer than ", seconds, " s although every rank is in it; ", waiting)
                      : str("did not come to ", call, " within ", seconds, " s; last seen: ", places(states, false), "; ", waiting);
  return error_text(where, given, str("every rank within --comm_timeout ", seconds, " s of the first"),
                    "see what that rank and its machine are doing; a larger --comm_timeout where the work itself takes longer; "
                    "--resume_from_checkpoint auto goes on from the last checkpoint");
}

std::string process_text(int64_t process) {
  if (process <= 0) return "";
  char state = 'X';
  if (std::FILE* f = std::fopen(str("/proc/", process, "/stat").c_str(), "r")) {
    if (std::fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = 'X';
    std::fclose(f);
  }
  return str("process ", process, ", ", state_name(state));
}

}  // namespace tessera
