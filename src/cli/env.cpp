// tessera env: what a report of a problem needs, ready to be copied.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>

#include "backend/backend.h"
#include "cli/command.h"
#include "cli/record.h"
#include "comm/comm.h"
#include "comm/nccl_library.h"
#include "core/error.h"
#include "core/text.h"
#include "train/plan.h"

// TESSERA_VERSION, TESSERA_BUILD_TYPE and TESSERA_COMMIT are given to this file by the build.

namespace tessera {
namespace {

struct EnvOptions {
  bool json = false;
};

// The values of a key of /proc/cpuinfo, one per logical CPU.
std::vector<std::string> cpu_info(const std::string& key) {
  std::ifstream in("/proc/cpuinfo");
  std::vector<std::string> values;
  for (std::string line; std::getline(in, line);)
    if (const size_t colon = line.find(':'); colon != std::string::npos && trim(line.substr(0, colon)) == key)
      values.push_back(trim(line.substr(colon + 1)));
  return values;
}

std::string cpu_model() {
  const auto models = cpu_info("model name");
  return models.empty() ? "unknown" : models[0];
}

std::string instruction_sets() {
  const auto flags = cpu_info("flags");
  if (flags.empty()) return "unknown";
  const auto all = split(flags[0], ' ');
  const std::set<std::string> present(all.begin(), all.end());
  std::vector<std::string> shown;
  for (const char* name : {"sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"})
    if (present.count(name)) shown.emplace_back(name);
  return join(shown, " ");
}

std::string system_name() {
  std::ifstream in("/etc/os-release");
  for (std::string line; std::getline(in, line);)
    if (starts_with(line, "PRETTY_NAME=")) return replace_all(line.substr(12), "\"", "");
  return "Linux";
}

std::string compiler() {
  const std::string version = __VERSION__;
#ifdef __clang__
  return version;
#else
  return str("gcc ", version);
#endif
}

using Facts = std::vector<std::pair<std::string, std::string>>;

// Of the first one: what a plan counts for it beside what is allocated.
std::string gpu_constant() {
  Overhead held;
  try {
    held = make_backend("cuda", 1)->overhead();
  } catch (const Error& e) {
    held.unknown = split(e.what(), '\n')[0];
  }
  return str(held.unknown.empty() ? str(human_bytes(held.bytes), " for context and libraries, measured") : "unknown: " + held.unknown,
             "; plans for a GPU elsewhere count ", human_bytes(plan_gpu_constant));
}

void add_gpus(Facts& all) {
  const int gpus = cuda_devices();
  all.emplace_back("devices", gpus > 0 ? "cpu, cuda" : "cpu");
  if (!built_with_cuda()) return void(all.emplace_back("gpus", "no CUDA in this build"));
  const Facts cuda = cuda_facts();
  for (const auto& [name, value] : cuda) all.emplace_back(name, split(value, '\n')[0]);
  if (gpus > 0) all.emplace_back("gpu constant", gpu_constant());
  all.emplace_back("nccl", nccl_version());
  if (const char* visible = std::getenv("CUDA_VISIBLE_DEVICES")) all.emplace_back("CUDA_VISIBLE_DEVICES", str("\"", visible, "\""));
}

Facts facts() {
  const auto backend = make_backend("cpu", 0);
  const auto free_bytes = size_t(::sysconf(_SC_AVPHYS_PAGES)) * size_t(::sysconf(_SC_PAGESIZE));
  Facts all = {
      {"tessera", std::string(version())},
      {"commit", TESSERA_COMMIT},
      {"build", TESSERA_BUILD_TYPE},
      {"compiler", compiler()},
      {"system", system_name()},
      {"cpu", cpu_model()},
      {"instructions", instruction_sets()},
      {"cores", str(::sysconf(_SC_NPROCESSORS_ONLN), " online")},
      {"memory", str(human_bytes(backend->total_memory()), ", ", human_bytes(free_bytes), " free")},
      {"backend", backend->describe()},
      {"ranks", make_mpi_comm()->describe()},
  };
  add_gpus(all);
  return all;
}

}  // namespace

std::string_view version() { return TESSERA_VERSION; }

int run_env(const Arguments& args) {
  EnvOptions options;
  FieldList fields("env", "usage: tessera env [--json]\n\nThis build and this machine, ready to be copied into a report.");
  fields.group("Options");
  fields.add("json", &options.json, "one JSON object");
  if (!read_options(fields, args)) return 0;
  Record record;
  for (const auto& [name, value] : facts()) {
    record.add(name, value);
    if (!options.json) std::printf("%-13s%s%s\n", name.c_str(), name.size() < 13 ? "" : " ", value.c_str());
  }
  if (options.json) std::puts(record.line().c_str());
  return 0;
}

}  // namespace tessera
