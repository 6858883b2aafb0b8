#include "cli/launch.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cli/command.h"
#include "cli/supervise.h"
#include "cli/upstream.h"
#include "comm/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"

namespace tessera {
namespace {

const std::vector<std::string> launched = {"train", "eval"};  // the commands that run on ranks

struct LaunchOptions {
  int64_t num_processes = 0, max_restarts = 0;
  std::string mpiexec, sharding_strategy;
  int64_t threads = 0;
  bool cpu = false, offload = false;
};

FieldList launch_fields(LaunchOptions& o) {
  FieldList fields("launch",
                   "usage: tessera launch --num_processes N [--max_restarts N] [--mpiexec PATH] train ...\n\n"
                   "Runs a command on N ranks of this machine, under MPICH's mpiexec. Options before the command's name are launch's own.");
  fields.group("Options");
  fields.add("num_processes", &o.num_processes, "ranks (needed)").also({"nproc_per_node"}).from(1).sets_others();
  fields.add("max_restarts", &o.max_restarts, "when a rank dies, start all of them again from the last checkpoint, so often at most")
      .from(0);
  fields.add("mpiexec", &o.mpiexec,
             "MPICH's launcher; none: the one beside the program, else mpiexec.mpich, mpiexec.hydra or mpiexec of the PATH");
  fields.add("num_cpu_threads_per_process", &o.threads, "threads per rank; 0: the cores of the machine shared by its ranks").from(0);
  fields.add("fsdp_sharding_strategy", &o.sharding_strategy, "passed to the command as --sharding_strategy");
  fields.add("fsdp_offload_params", &o.offload, "passed to the command as --use_cpu_offload");
  fields.add("cpu", &o.cpu, "passed to the command as --device cpu; else it chooses the device").also({"use_cpu"});
  return fields;
}

// What a shell reads back as one word.
std::string shell_word(const std::string& text) { return str("'", replace_all(text, "'", "'\\''"), "'"); }

bool is_mpich(const std::string& path) {
  std::FILE* pipe = ::popen((shell_word(path) + " --version 2>/dev/null").c_str(), "r");
  if (!pipe) return false;
  std::string text;
  char part[512];
  while (const size_t n = std::fread(part, 1, sizeof part, pipe)) text.append(part, n);
  ::pclose(pipe);
  return text.find("HYDRA") != std::string::npos;
}

std::string on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  for (const auto& folder : split(path ? path : "", ':'))
    if (const std::string file = folder + "/" + program; !folder.empty() && ::access(file.c_str(), X_OK) == 0) return file;
  return "";
}

std::string own_path() {
  char path[4096];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0) fail("/proc/self/exe", std::strerror(errno), "a system with /proc", "run mpiexec -n N tessera train ... yourself");
  return std::string(path, size_t(n));
}

Arguments mpiexec_words(int64_t ranks, const std::string& mpiexec, const Arguments& command) {
  Arguments words = {find_mpiexec(mpiexec), "-n", str(ranks), own_path()};
  words.insert(words.end(), command.begin(), command.end());
  return words;
}

}  // namespace

std::string find_mpiexec(const std::string& given) {
  if (!given.empty()) {
    const std::string path = given.find('/') == std::string::npos ? on_path(given) : given;
    if (!path.empty() && is_mpich(path)) return path;
    fail("--mpiexec", str("\"", given, "\" is not MPICH's launcher"), "a launcher whose --version says HYDRA", "apt-get install mpich");
  }
  const std::string program = own_path(), beside = program.substr(0, program.rfind('/')) + "/mpiexec.hydra";  // of a bundle
  if (::access(beside.c_str(), X_OK) == 0 && is_mpich(beside)) return beside;
  for (const char* name : {"mpiexec.mpich", "mpiexec.hydra", "mpiexec"})
    if (const std::string path = on_path(name); !path.empty() && is_mpich(path)) return path;
  fail("tessera launch", "MPICH's mpiexec is not on the PATH", "several ranks with MPICH, or one rank without", "apt-get install mpich");
}

Launch parse_launch(const Arguments& args) {
  LaunchOptions options;
  FieldList fields = launch_fields(options);
  const CommandLine line = read_command_line(args, fields, launched);
  std::vector<std::string> known = fields.names();
  for (const auto& name : upstream_names()) known.push_back(name);
  Launch launch;
  launch.notices = judge_upstream(line.given, fields);
  for (const auto& given : line.given) {
    if (Field* f = fields.find(given.name))
      f->set(given);
    else if (!find_upstream_flag(given.name))
      unknown_name(given, known);
  }
  if (options.num_processes < 1) fail("tessera launch", "--num_processes is missing", "the number of ranks", "add --num_processes N");
  if (line.words.empty() || std::find(launched.begin(), launched.end(), line.words[0]) == launched.end())
    fail("tessera launch", line.words.empty() ? "the command is missing" : str("\"", line.words[0], "\" is no command that runs on ranks"),
         join(launched, ", "), "write train and its options after launch's own");
  if (options.max_restarts > 0 && line.words[0] != "train")
    fail("--max_restarts", str("given with ", line.words[0]), "train, which goes on from its checkpoints", "leave it out");
  launch.ranks = options.num_processes;
  launch.max_restarts = options.max_restarts;
  launch.mpiexec = options.mpiexec;
  launch.command = line.words;
  if (options.threads > 0) launch.command.push_back(str("--threads=", options.threads));
  if (!options.sharding_strategy.empty()) launch.command.push_back("--sharding_strategy=" + options.sharding_strategy);
  if (options.cpu) launch.command.push_back("--device=cpu");
  if (options.offload) launch.command.push_back("--use_cpu_offload=true");
  return launch;
}

void start_ranks(int64_t ranks, const std::string& mpiexec, const Arguments& command) {
  Arguments words = mpiexec_words(ranks, mpiexec, command);
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  fail(words[0], str("cannot be run: ", std::strerror(errno)), "MPICH's launcher", "apt-get install mpich");
}

int run_launch(const Arguments& args) {
  LaunchOptions options;
  FieldList fields = launch_fields(options);
  const bool own_help = args.empty() || args[0] == "--help" || args[0] == "-h";
  if (own_help) {
    std::fputs(help_text(fields).c_str(), stdout);
    return 0;
  }
  const Launch launch = parse_launch(args);
  if (started_by_mpi())
    fail("tessera launch", "this process was started by mpiexec already", "launch outside of mpiexec", "leave out launch and its options");
  for (const auto& notice : launch.notices) say(notice);
  return supervise_ranks(mpiexec_words(launch.ranks, launch.mpiexec, launch.command), launch.ranks, launch.max_restarts);
}

}  // namespace tessera
