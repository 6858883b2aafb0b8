// tessera train: one rank of a run, or the start of all of them.
#include <time.h>

#include <atomic>
#include <csignal>
#include <cstdio>

#include "cli/command.h"
#include "cli/config.h"
#include "cli/run_record.h"
#include "cli/supervise.h"
#include "comm/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "train/loop.h"

namespace tessera {
namespace {

std::atomic<int64_t> first_signal{0};  // milliseconds

// The first signal asks for a clean stop; a later one ends the program at once. Senders often send twice (timeout, scancel --full, a
// launcher that passes on what the terminal has sent already): what comes within a second is the same request.
void on_signal(int signal) {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  const int64_t now = int64_t(t.tv_sec) * 1000 + t.tv_nsec / 1000000 + 1;
  int64_t first = 0;
  if (first_signal.compare_exchange_strong(first, now) || now - first < 1000) return request_stop();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void watch_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, on_signal);
}

void report(const TrainConfig& c, const TrainResult& r) {
  if (r.interrupted) {
    say(str("stopped  after step ", r.steps, " by a signal; the same command with --resume_from_checkpoint true continues"));
    return;
  }
  say(str("done     ", r.steps, " steps, loss ", fixed(r.first_loss, 4), " at first, ", fixed(r.last_loss, 4),
          " at the end (mean of the last 30)"));
  if (r.saved.empty()) {
    warn("--save_model false: nothing is written at the end");
  } else {
    say(str("files    ", r.saved, "/", find_train_type(c.train_type).adapter ? "adapter_model.safetensors" : "model.safetensors",
            ", train.jsonl, ", run_record_name));
  }
}

int run_rank(const TrainArguments& arguments, Comm& comm) {
  set_log_rank(comm.rank(), comm.size());
  if (arguments.world_size > 0 && arguments.world_size != comm.size())
    fail("--world_size", str(arguments.world_size), str(comm.size(), ", the ranks that mpiexec started"), "give both the same number");
  for (const std::string& notice : arguments.notices) say(notice);
  watch_signals();
  comm.set_deadline(arguments.config.comm_timeout);
  const TrainResult result = train(arguments.config, comm, [&] { write_run_record(arguments.config, comm.size()); },
                                   {str("tessera ", version()), to_texts(arguments.config)});
  report(arguments.config, result);
  comm.barrier();
  return result.interrupted ? exit_continue_me : 0;
}

}  // namespace

int run_train(const Arguments& args) {
  if (asks_for_help(args)) {
    std::fputs(train_help(args).c_str(), stdout);
    return 0;
  }
  const TrainArguments arguments = parse_train(args);
  if (started_by_mpi()) return run_rank(arguments, *make_mpi_comm());
  if (arguments.world_size > 1) {
    Arguments command{"train"};
    command.insert(command.end(), args.begin(), args.end());
    start_ranks(arguments.world_size, "", command);
  }
  return run_rank(arguments, *make_single_comm());
}

}  // namespace tessera
