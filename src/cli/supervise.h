// Ranks under a parent process that stays: it passes signals on, says what died, and starts all ranks again from the last checkpoint.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/arguments.h"

namespace tessera {

constexpr int exit_continue_me = 75;  // EX_TEMPFAIL: stopped by a signal, everything is saved, --resume_from_checkpoint true goes on

// How a start of all ranks ended. MPICH's mpiexec gives the number of the signal that ended a rank, or the exit code a rank gave.
enum class StartEnd { done, continue_me, user_error, died };
StartEnd judge_start(int mpiexec_code);
std::string describe_end(int mpiexec_code);       // "signal 9 (Killed)", "exit code 70 (a rank did not come in time)"
int64_t dead_process(const std::string& output);  // that mpiexec says was the first to end badly; 0: it does not say

// The ranks that are descendants of a process, by rank: their process ids, of those that run now. From /proc.
std::vector<int64_t> rank_processes(int64_t mpiexec, int64_t ranks);  // 0: not seen

// Runs `words` (mpiexec and its arguments) as a child until it ends well, or because the user is at fault, or by a signal to this process;
// else again, with `--resume_from_checkpoint auto` added, at most `restarts` times. Returns the exit code of the last start.
// SIGINT, SIGTERM and SIGUSR1 go to every rank. When it returns no process of its own is left.
int supervise_ranks(const Arguments& words, int64_t ranks, int64_t restarts);

}  // namespace tessera
