#include "program.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "core/text.h"

// TESSERA_PROGRAM and TESSERA_MPIEXEC are given to this file by the build; in a bundle, which lies elsewhere, by the environment.

namespace tessera {
namespace {

std::string or_environment(const char* built, const char* name) {
  const char* given = std::getenv(name);
  return given ? given : built;
}
std::string mpiexec_path() { return or_environment(TESSERA_MPIEXEC, "TESSERA_MPIEXEC"); }

std::string content(std::FILE* f) {
  std::string text;
  std::rewind(f);
  char part[4096];
  while (const size_t n = std::fread(part, 1, sizeof part, f)) text.append(part, n);
  return text;
}

[[noreturn]] void become(const Words& words, std::FILE* in, std::FILE* out, std::FILE* err) {
  setpgid(0, 0);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::signal(signal, SIG_DFL);  // a shell's background job would ignore some
  dup2(fileno(in), 0), dup2(fileno(out), 1), dup2(fileno(err), 2);
  setenv("CUDA_VISIBLE_DEVICES", "", 1);  // these tests are of the CPU, whatever the machine has: their ranks are more than its GPUs
  std::vector<char*> argv;
  for (const auto& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  _exit(127);
}

// A file of /proc, whose strings end with zeros.
std::string process_file(pid_t id, const char* name) {
  std::ifstream in(str("/proc/", id, "/", name));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Program::Program(const Words& words, const std::string& input)
    : line_(join(words, " ")), in_(std::tmpfile()), out_(std::tmpfile()), err_(std::tmpfile()) {
  std::fwrite(input.data(), 1, input.size(), in_.get());
  std::rewind(in_.get());
  id_ = fork();
  if (id_ == 0) become(words, in_.get(), out_.get(), err_.get());
}

Program::~Program() {
  if (!running()) return;
  kill(-id_, SIGKILL);
  waitpid(id_, &status_, 0);
}

void Program::send(int signal) const {
  if (id_ > 0) kill(id_, signal);
}

bool Program::running() {
  if (id_ > 0 && waitpid(id_, &status_, WNOHANG) == id_) id_ = -1;
  return id_ > 0;
}

Ended Program::wait(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (running() && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  if (running()) {
    ADD_FAILURE() << "still running after " << seconds << " s: " << line_ << "\n" << content(err_.get());
    kill(-id_, SIGKILL);
    waitpid(id_, &status_, 0);
    id_ = -1;
  }
  return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_), content(out_.get()), content(err_.get())};
}

Words tessera(const Words& words) { return Words{or_environment(TESSERA_PROGRAM, "TESSERA_PROGRAM")} + words; }
Words mpiexec(int ranks, const Words& words) { return Words{mpiexec_path(), "-n", str(ranks)} + tessera(words); }
Words mpiexec(const std::vector<Words>& commands) {
  Words all = {mpiexec_path()};
  for (const Words& command : commands) all = all + (all.size() > 1 ? Words{":"} : Words{}) + Words{"-n", "1"} + tessera(command);
  return all;
}

Ended run(const Words& words, const std::string& input) { return Program(words, input).wait(); }

std::vector<pid_t> processes_with(const std::string& text) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (!std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isdigit(c); })) continue;
    const pid_t id = pid_t(std::stol(name));
    if (process_file(id, "cmdline").find(text) != std::string::npos) found.push_back(id);
  }
  return found;
}

pid_t rank_with(const std::string& text, int rank) {
  const std::string mark = str('\0', "PMI_RANK=", rank, '\0');
  for (const pid_t id : processes_with(text))
    if ((std::string(1, '\0') + process_file(id, "environ")).find(mark) != std::string::npos) return id;
  return -1;
}

}  // namespace tessera
