// The real program as a child process: how it was started, what it wrote, how it ended. What takes too long is killed and fails the test.
#pragma once
#include <sys/types.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace tessera {

using Words = std::vector<std::string>;
Words operator+(Words a, const Words& b);

struct Ended {
  int code = 0;  // exit code, or 128 + the signal that ended it
  std::string out, err;
};

class Program {
 public:
  explicit Program(const Words& words, const std::string& input = "");  // words[0] is a path
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program();  // ends what still runs
  void send(int signal) const;
  bool running();
  Ended wait(double seconds = 60);

 private:
  struct Close {
    void operator()(std::FILE* f) const { std::fclose(f); }
  };
  using File = std::unique_ptr<std::FILE, Close>;
  std::string line_;
  File in_, out_, err_;
  pid_t id_ = -1;
  int status_ = 0;
};

// tessera WORDS, and the same as ranks. Several commands: rank i runs the i-th.
Words tessera(const Words& words);
Words mpiexec(int ranks, const Words& words);
Words mpiexec(const std::vector<Words>& commands);
Ended run(const Words& words, const std::string& input = "");

// Processes that have `text` in their command line; the one of them that is rank `rank` of mpiexec, or -1.
std::vector<pid_t> processes_with(const std::string& text);
pid_t rank_with(const std::string& text, int rank);

}  // namespace tessera
