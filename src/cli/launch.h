// Several ranks from one command: MPICH's mpiexec starts this program once per rank.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/arguments.h"

namespace tessera {

// What `tessera launch` was asked to do: mpiexec -n ranks tessera COMMAND.
struct Launch {
  int64_t ranks = 1;
  int64_t max_restarts = 0;  // how often all ranks are started again after one died
  std::string mpiexec;       // a path; "": MPICH's on the PATH
  Arguments command;         // "train", its options, and what launch's own options ask of it
  std::vector<std::string> notices;
};
Launch parse_launch(const Arguments&);

// MPICH's launcher: `given` when it is one, else the one beside the program (of a bundle), else the first on the PATH. Throws Error naming
// the package when there is none.
std::string find_mpiexec(const std::string& given);

}  // namespace tessera
