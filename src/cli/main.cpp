// The program: finds the command, runs it, and is the one place where errors end.
#include <cstdio>
#include <exception>
#include <string>

#include "cli/command.h"
#include "comm/comm.h"
#include "core/log.h"
#include "core/text.h"

namespace tessera {
namespace {

int run_program(const Arguments& words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    std::fputs(program_help().c_str(), stdout);
    return 0;
  }
  if (words[0] == "--version") {
    std::puts(str("tessera ", version()).c_str());
    return 0;
  }
  return find_command(words[0]).run(Arguments(words.begin() + 1, words.end()));
}

// One rank's error must not leave the others waiting.
int give_up(const std::string& what) {
  complain(what);
  if (started_by_mpi())
    if (const auto ranks = make_mpi_comm(); ranks->size() > 1) ranks->abort(1);
  return 1;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  try {
    return tessera::run_program(tessera::Arguments(argv + 1, argv + argc));
  } catch (const std::bad_alloc&) {
    return tessera::give_up("out of memory");
  } catch (const std::exception& e) {
    return tessera::give_up(e.what());
  }
}
