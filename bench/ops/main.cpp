// bench/ops: every operation of the backend on shapes of real models, each with its share of what the machine can do.
//   build/bench/ops --threads=2 --benchmark_filter=gemm    (and the other flags of Google Benchmark)
#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>

#include "bench/ops/bench.h"
#include "bench/process.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

// Takes --threads=N out of the arguments; 0: all cores.
int take_threads(int& argc, char** argv) {
  const std::string flag = "--threads=";
  int threads = 0, kept = 0;
  for (int i = 0; i < argc; ++i) {
    const std::string word = argv[i];
    if (starts_with(word, flag)) {
      threads = std::atoi(word.c_str() + flag.size());
      if (threads < 1) fail(word, "is no number of threads", "1 or more", "give the cores to be used, or leave it out");
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  return threads;
}

int run(int argc, char** argv) {
  const auto backend = make_backend("cpu", take_threads(argc, argv));
  benchmark::Initialize(&argc, argv);
  if (argc > 1) fail(argv[1], "is no option", "--threads=N, and the flags of Google Benchmark", "see --help");
  MachineLimits limits(backend->threads());
  Bench bench(*backend, limits);
  for (const auto add : {add_gemm, add_gemm_codes, add_gemm_few_rows, add_attention, add_rmsnorm, add_swiglu, add_rope, add_cross_entropy,
                         add_embedding, add_adamw, add_codebook4, add_elementwise})
    add(bench);
  benchmark::AddCustomContext("backend", backend->describe());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  tessera::wait_restfully(argv);
  try {
    return tessera::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
