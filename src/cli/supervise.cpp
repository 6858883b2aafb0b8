#include "cli/supervise.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

#include "comm/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int most_signals = 16;
std::atomic<int> received[most_signals];  // in their order; 0: none yet
std::atomic<int> received_count{0};

void note_signal(int signal) {
  const int at = received_count.fetch_add(1);
  if (at < most_signals) received[at] = signal;
}

void doze() { std::this_thread::sleep_for(std::chrono::milliseconds(10)); }

std::string text_of(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::vector<int64_t> children_of(int64_t process) {
  std::istringstream in(text_of(str("/proc/", process, "/task/", process, "/children")));
  std::vector<int64_t> all;
  for (int64_t id; in >> id;) all.push_back(id);
  return all;
}

// The rank that mpiexec has given to a process, or -1.
int64_t rank_of(int64_t process) {
  const std::string environment = str('\0', text_of(str("/proc/", process, "/environ"))), mark = str('\0', "PMI_RANK=");
  const size_t at = environment.find(mark);
  return at == environment.npos ? -1 : std::atoll(environment.c_str() + at + mark.size());
}

// A process group of its own: what the terminal sends comes here only, and is passed on once. Without a terminal to read from, which would
// stop a process in the background. It does not outlive this process.
pid_t start_child(const Arguments& words, int output) {
  std::vector<char*> argv;
  for (const auto& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid(), child = fork();
  if (child < 0)
    fail("tessera launch", str("no process can be made: ", std::strerror(errno)), "a system with room for processes", "end some");
  if (child > 0) return child;
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, SIG_DFL);
  if (const int nothing = open("/dev/null", O_RDONLY); nothing >= 0) dup2(nothing, 0);
  dup2(output, 1);
  execv(argv[0], argv.data());
  _exit(127);
}

// One start of all ranks. What they write to stdout passes through here: mpiexec names there the process that ended badly.
class Start {
 public:
  Start(const Arguments& words, int64_t ranks);
  ~Start() { close(output_); }
  Start(const Start&) = delete;
  Start& operator=(const Start&) = delete;
  int wait();                     // until no process of it is left; mpiexec's exit code
  std::string who_ended() const;  // "rank 1 (process 4321)"

 private:
  bool reap();  // false: there are no children any more
  void find_ranks();
  void pass_signals_on();
  void send(int signal) const;
  void pass_output_on();

  pid_t mpiexec_ = -1;
  int output_ = -1;
  const int64_t ranks_;
  std::vector<int64_t> processes_;  // by rank; 0: not seen
  std::string tail_;                // of the output
  int code_ = -1, passed_on_ = 0;
};

Start::Start(const Arguments& words, int64_t ranks) : ranks_(ranks), processes_(size_t(ranks)) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    fail("tessera launch", str("no pipe can be made: ", std::strerror(errno)), "a system with room for files", "close some");
  output_ = ends[0];
  fcntl(output_, F_SETFL, O_NONBLOCK);
  mpiexec_ = start_child(words, ends[1]);
  close(ends[1]);
}

void Start::pass_output_on() {
  constexpr size_t kept = 8192;
  char part[4096];
  for (ssize_t n; (n = read(output_, part, sizeof part)) > 0;) {
    std::fwrite(part, 1, size_t(n), stdout);
    tail_.append(part, size_t(n));
    if (tail_.size() > kept) tail_.erase(0, tail_.size() - kept);
  }
  std::fflush(stdout);
}

std::string Start::who_ended() const {
  const int64_t process = dead_process(tail_);
  const auto at = std::find(processes_.begin(), processes_.end(), process);
  if (process == 0) return "a rank";
  return at == processes_.end() ? str("process ", process) : str("rank ", at - processes_.begin(), " (process ", process, ")");
}

// Also the launcher's helpers and the ranks themselves: their parent is this process once mpiexec is gone.
bool Start::reap() {
  int status = 0;
  for (pid_t id; (id = waitpid(-1, &status, WNOHANG)) != 0;) {
    if (id < 0) return errno != ECHILD;
    if (id == mpiexec_) code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  return true;
}

void Start::find_ranks() {
  if (std::count(processes_.begin(), processes_.end(), 0) > 0) processes_ = rank_processes(mpiexec_, ranks_);
}

// To the ranks themselves: Hydra loses the exit codes of ranks now and then after it has passed a signal on.
void Start::send(int signal) const {
  bool sent = false;
  for (const int64_t id : processes_) sent = (id > 0 && kill(pid_t(id), signal) == 0) || sent;
  if (!sent) kill(mpiexec_, signal);
}

void Start::pass_signals_on() {
  for (; passed_on_ < std::min(received_count.load(), most_signals); ++passed_on_) send(received[passed_on_]);
}

int Start::wait() {
  for (int tries = 0; reap() && code_ < 0; ++tries) {
    if (tries % 10 == 0) find_ranks();
    pass_signals_on();
    pass_output_on();
    doze();
  }
  const auto patience = Clock::now() + std::chrono::seconds(5);
  while (reap()) {
    if (Clock::now() > patience)
      for (const int64_t id : children_of(getpid())) kill(pid_t(id), SIGKILL);
    doze();
  }
  pass_output_on();
  return code_;
}

}  // namespace

StartEnd judge_start(int code) {
  switch (code) {
    case 0:
      return StartEnd::done;
    case exit_continue_me:
      return StartEnd::continue_me;
    case 1:
    case 127:
      return StartEnd::user_error;
    default:
      return StartEnd::died;
  }
}

std::string describe_end(int code) {
  if (code == exit_rank_lost) return str("exit code ", code, " (a rank did not come in time)");
  const int signal = code > 128 ? code - 128 : code;
  const char* name = signal > 1 && signal < 32 ? strsignal(signal) : nullptr;
  return name ? str("signal ", signal, " (", name, ")") : str("exit code ", code);
}

int64_t dead_process(const std::string& output) {
  const std::string mark = "BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES";
  const size_t said = output.find(mark), at = said == output.npos ? said : output.find("PID ", said);
  return at == output.npos ? 0 : std::atoll(output.c_str() + at + 4);
}

std::vector<int64_t> rank_processes(int64_t mpiexec, int64_t ranks) {
  std::vector<int64_t> found(size_t(ranks), 0);
  for (const int64_t proxy : children_of(mpiexec))
    for (const int64_t process : children_of(proxy))
      if (const int64_t rank = rank_of(process); rank >= 0 && rank < ranks) found[size_t(rank)] = process;
  return found;
}

int supervise_ranks(const Arguments& words, int64_t ranks, int64_t restarts) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, note_signal);
  Arguments again = words;
  again.insert(again.end(), {"--resume_from_checkpoint", "auto"});
  for (int64_t left = restarts;; --left) {
    Start start(left == restarts ? words : again, ranks);
    const int code = start.wait();
    if (judge_start(code) != StartEnd::died || received_count > 0) return code;
    const std::string what = str("launch: ", start.who_ended(), " ended by ", describe_end(code));
    if (left == 0) {
      complain(str(what, restarts ? "; no restart is left" : "; --max_restarts N starts all ranks again from the last checkpoint"));
      return code;
    }
    warn(str(what, "; all ranks start again from the last checkpoint; restarts left: ", left - 1, " of ", restarts));
  }
}

}  // namespace tessera
