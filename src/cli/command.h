// The commands of the program `tessera`. A command is a function and a row of the table in command.cpp.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "cli/arguments.h"

namespace tessera {

struct Command {
  std::string_view name;
  std::string_view summary;           // one line
  int (*run)(const Arguments& args);  // args: the words after the name. Returns the exit code; throws Error. Answers --help itself
};

const std::vector<Command>& commands();
const Command& find_command(std::string_view name);  // throws Error naming the nearest
std::string program_help();                          // what `tessera --help` prints
std::string_view version();                          // "0.1.0"

int run_train(const Arguments&);
int run_plan(const Arguments&);
int run_generate(const Arguments&);
int run_eval(const Arguments&);
int run_inspect(const Arguments&);
int run_consolidate(const Arguments&);
int run_tokenize(const Arguments&);
int run_launch(const Arguments&);
int run_env(const Arguments&);

// Replaces this process by `mpiexec -n ranks tessera COMMAND`, so signals reach mpiexec, which passes them on. Returns only by an Error: no
// MPICH, or it cannot be run. mpiexec: a path; "": MPICH's on the PATH. REQUIRES: not started_by_mpi().
[[noreturn]] void start_ranks(int64_t ranks, const std::string& mpiexec, const Arguments& command);

}  // namespace tessera
