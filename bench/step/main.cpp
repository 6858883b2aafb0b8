// bench/step: the speed and the memory of training steps, or of generation, set against what the machine can do. The limit of a
// processor is read after the steps, so that it costs no start time and no memory of theirs; that of a GPU is given.
#include <sys/prctl.h>

#include <cstdio>
#include <exception>

#include "bench/limits.h"
#include "bench/process.h"
#include "bench/step/reading.h"
#include "cli/record.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "train/build.h"

namespace tessera {
namespace {

struct Limit {
  double gemm = 0;  // FLOPs per second of all ranks at once; 0: unknown
  double read = 0;  // bytes per second, of as many bytes as the weights have; generation only; 0: unknown
};

Limit read_limit(const StepRequest& r, const Reading& reading, Comm& comm, int threads) {
  Limit limit{r.limit_tflops * 1e12 * comm.size(), r.limit_tbs * 1e12};
  if (r.config.device != "cpu" || limit.gemm > 0) return limit;
  comm.barrier();
  for (const double of_rank : gather_values(comm, gemm_peak(compute_dtype(r.config.precision), threads))) limit.gemm += of_rank;
  if (r.generate > 0) limit.read = MachineLimits(threads).read(size_t(reading.bytes));
  return limit;
}

double megabytes(size_t bytes) { return double(bytes) / double(1 << 20); }

double rounded(double v, int digits) { return std::stod(significant(v, digits)); }

double share(double part, double limit) { return limit > 0 ? part / limit : 0; }

std::string json_line(const StepRequest& r, const Reading& reading, const Limit& limit, int ranks, int threads) {
  const TrainConfig& c = r.config;
  const double rate = reading.tokens / reading.median();
  Record out;
  out.add("tokens_per_second", rounded(rate, 5)).add("milliseconds", rounded(reading.median() * 1e3, 5));
  out.add("share_of_peak", rounded(share(rate * reading.flops, limit.gemm), 4)).add("gemm_peak_gflops", rounded(limit.gemm * 1e-9, 4));
  out.add("flops_per_token", reading.flops);
  if (r.generate > 0) {
    out.add("bytes_per_token", reading.bytes).add("read_gbytes_per_second", rounded(limit.read * 1e-9, 4));
    out.add("share_of_read", rounded(share(rate * reading.bytes, limit.read), 4));
  }
  out.add("peak_rss_mb", rounded(megabytes(reading.memory.peak), 6))
      .add("rss_anonymous_mb", rounded(megabytes(reading.memory.anonymous), 6));
  out.add("rss_file_mb", rounded(megabytes(reading.memory.file), 6)).add("rss_shared_mb", rounded(megabytes(reading.memory.shared), 6));
  if (c.device != "cpu") out.add("peak_device_mb", rounded(megabytes(reading.device_peak), 6));
  if (reading.planned) {
    out.add("gpu_constant_mb", rounded(megabytes(reading.constant), 6))
        .add("planned_gpu_constant_mb", rounded(megabytes(reading.planned_constant), 6));
    out.add("planned_device_mb", rounded(megabytes(reading.planned), 6));
  }
  out.add("load_seconds", rounded(reading.load_seconds, 4)).add("first_step_seconds", rounded(reading.first_seconds, 4));
  if (r.generate == 0) out.add("loss", reading.loss);
  out.add("model", c.model).add("init", c.init).add("train_type", c.train_type).add("precision", c.precision);
  if (r.generate > 0) {
    out.add("generate", r.generate).add("prompt", r.prompt);
  } else {
    out.add("lora_rank", c.lora_rank).add("context_length", c.context_length).add("batch_size", c.batch_size);
    out.add("gradient_checkpointing", c.gradient_checkpointing).add("sharding_strategy", c.sharding_strategy).add("steps", r.steps);
  }
  out.add("device", c.device).add("threads", int64_t(threads)).add("ranks", int64_t(ranks));
  return out.line();
}

std::string table(const StepRequest& r, const Reading& reading, const Limit& limit) {
  const double rate = reading.tokens / reading.median();
  const bool trains = r.generate == 0;
  std::string out;
  const auto row = [&](const char* name, const std::string& value) { out += str(name, value, "\n"); };
  row("tokens/s        ", fixed(rate, 1));
  row(trains ? "a step          " : "a token         ",
      str(fixed(reading.median() * 1e3, 1), " ms, the median of ", reading.seconds.size()));
  if (trains && limit.gemm > 0)
    row("share of peak   ", str(fixed(100 * rate * reading.flops / limit.gemm, 1), " % of ", fixed(limit.gemm * 1e-9, 0), " GF/s, at ",
                                fixed(reading.flops * 1e-9, 3), " GF per token"));
  if (!trains && limit.read > 0)
    row("share of limit  ", str(fixed(100 * rate * reading.bytes / limit.read, 1), " % of ", fixed(limit.read * 1e-9, 1), " GB/s, at ",
                                fixed(reading.bytes * 1e-6, 0), " MB of weights per token"));
  row("peak memory     ", str(fixed(megabytes(reading.memory.peak), 0), " MB"));
  if (reading.device_peak) row("peak of device  ", str(fixed(megabytes(reading.device_peak), 0), " MB"));
  if (reading.planned)
    row("beside it       ",
        str(reading.constant ? fixed(megabytes(reading.constant), 0) : "an unknown number of", " MB for context and libraries; planned ",
            fixed(megabytes(reading.planned_constant), 0), " MB, and ", fixed(megabytes(reading.planned), 0), " MB in all"));
  row("memory at end   ", str(fixed(megabytes(reading.memory.anonymous), 0), " MB anonymous, ", fixed(megabytes(reading.memory.file), 0),
                              " MB of files, ", fixed(megabytes(reading.memory.shared), 0), " MB shared by ranks"));
  row("loading         ", str(fixed(reading.load_seconds, 2), " s"));
  row(trains ? "first step      " : "first token     ", str(fixed(reading.first_seconds, 2), " s after the start of the process"));
  if (trains) row("loss            ", fixed(reading.loss, 4));
  return out;
}

int run(const Arguments& args, Comm& comm) {
  StepRequest r;
  FieldList fields = step_fields(r);
  if (!read_options(fields, args)) return 0;
  if (r.generate > 0 && comm.size() > 1) fail("--generate", str("on ", comm.size(), " ranks"), "one rank", "start it without mpiexec");
  const int threads = rank_threads(r.config.device, r.config.threads, comm);
  const auto backend = make_backend(r.config.device, threads);
  const Reading reading = r.generate > 0 ? time_generation(r, comm, *backend) : time_training(r, comm, *backend);
  const Limit limit = read_limit(r, reading, comm, threads);
  if (comm.rank() > 0) return 0;
  if (r.json) {
    std::puts(json_line(r, reading, limit, comm.size(), threads).c_str());
  } else {
    std::fputs(table(r, reading, limit).c_str(), stdout);
  }
  return 0;
}

int run_rank(const Arguments& args) {
  const auto comm = make_mpi_comm();
  set_log_rank(comm->rank(), comm->size());
  try {
    return run(args, *comm);
  } catch (const std::exception& e) {
    complain(e.what());
    if (comm->size() > 1) comm->abort(1);
    return 1;
  }
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  tessera::wait_restfully(argv);
  prctl(PR_SET_NAME, "bench/step");
  return tessera::run_rank(tessera::Arguments(argv + 1, argv + argc));
}
