// The program: finds the command, runs it, and is the one place where errors end.
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "cli/command.h"
#include "comm/comm.h"
#include "core/ledger.h"
#include "core/log.h"
#include "core/text.h"

namespace tessera {
namespace {

// Threads that wait for others spin by default; where the cores have other work as well, a step then takes several times as long. The
// OpenMP runtime reads its settings when it is loaded, so the program starts itself again with them. What the user has set is left alone.
void wait_restfully(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  setenv("GOMP_SPINCOUNT", "1000", 1);
  execv("/proc/self/exe", argv);  // returns only when that is not possible; then the default stays
}

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

// When the host's own memory is refused: who held what at that moment, before everything is unwound.
std::string holders_at_refusal;
std::unique_ptr<char[]> spare(new char[1 << 16]);  // for the text

void note_holders() {
  std::set_new_handler(nullptr);
  spare.reset();
  holders_at_refusal = Ledger::text_of_all();
  throw std::bad_alloc();
}

std::string out_of_memory() {
  return str("memory of this process: the system refused more; counted as held: ", holders_at_refusal,
             "\n  allowed: what this machine, its container and ulimit -v leave to one process",
             "\n  do this: see what the run needs with `tessera plan` and the same options; use a smaller batch or context, more ranks, or "
             "less data");
}

int give_up(const std::string& what, Comm& ranks, int code) {
  complain(what);
  if (ranks.size() > 1) ranks.abort(code);
  return code;
}

// The group is made before anything can fail: an error of one rank then ends the others without their help.
int run_rank(const Arguments& words) {
  const auto ranks = make_mpi_comm();
  set_log_rank(ranks->rank(), ranks->size());
  try {
    return run_program(words);
  } catch (const RankLost& e) {
    return give_up(e.what(), *ranks, exit_rank_lost);
  } catch (const std::bad_alloc&) {
    return give_up(out_of_memory(), *ranks, 1);
  } catch (const std::exception& e) {
    return give_up(e.what(), *ranks, 1);
  }
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  tessera::wait_restfully(argv);
  std::set_new_handler(tessera::note_holders);
  prctl(PR_SET_NAME, "tessera");  // started again it would be called "exe"
  try {
    return tessera::run_rank(tessera::Arguments(argv + 1, argv + argc));
  } catch (const std::exception& e) {
    tessera::complain(e.what());
    return 1;
  }
}
