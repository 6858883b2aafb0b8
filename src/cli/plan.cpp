// tessera plan: what a run will hold and take, before a byte is loaded.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "backend/profiling_backend.h"
#include "cli/command.h"
#include "cli/config.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "train/plan.h"

namespace tessera {
namespace {

struct PlanOptions {
  int64_t num_processes = 0, num_machines = 1;
  std::string device_memory, host_memory;
  double tflops = 0, memory_bandwidth = 0, comm_bandwidth = 0;
  int64_t rows = 0;
  bool search = true, json = false;
};

FieldList plan_fields(PlanOptions& o) {
  FieldList fields("plan",
                   "usage: tessera plan --model FOLDER [options of train] [--num_processes N] [--device_memory 24GB]\n\n"
                   "Memory of each phase per rank, communication, FLOPs and expected time of a run, from the options of train. The folder\n"
                   "needs config.json only. It is a dry run: the run's own code over a device that computes nothing.\n"
                   "All options of `tessera train` are understood, see tessera train --help; and these:");
  fields.group("Machine");
  fields.add("num_processes", &o.num_processes, "ranks in all").also({"nproc_per_node"}).from(1).or_value(0);
  fields.add("num_machines", &o.num_machines, "nodes they are spread over").from(1);
  fields.add("device_memory", &o.device_memory,
             "each rank has a GPU with this much (24GB), also where there is none; not given: what --device has here");
  fields.add("host_memory", &o.host_memory,
             "of a node (128GB); not given: what is free here now, and no limit beside GPUs of another machine");
  fields.add("tflops", &o.tflops, "a rank's speed of products in 1e12 FLOP/s; 0: measured here, or that of a usual device of this memory")
      .from(0);
  fields.add("memory_bandwidth", &o.memory_bandwidth, "of a rank, GB/s; 0: likewise").from(0);
  fields.add("comm_bandwidth", &o.comm_bandwidth, "what a rank receives from the others, GB/s; 0: likewise").from(0);
  fields.group("Output");
  fields.add("rows", &o.rows, "rows of the dataset, for the time of an epoch and, without --device_memory, their memory").from(0);
  fields.add("search", &o.search, "look for the largest batch and context, and for what to change where it does not fit");
  fields.add("json", &o.json, "one JSON object on stdout");
  return fields;
}

// The words of this command's own fields are set; the others are train's.
Arguments take_own(FieldList& fields, const Arguments& args) {
  Arguments others;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& word = args[i];
    const size_t equals = word.find('=');
    const std::string name =
        starts_with(word, "--") ? replace_all(word.substr(2, equals == word.npos ? word.npos : equals - 2), "-", "_") : "";
    Field* field = name.empty() ? nullptr : fields.find(name);
    if (!field) {
      others.push_back(word);
      continue;
    }
    Given given{name, word.substr(0, equals), {}};
    if (equals != word.npos) {
      given.values = {word.substr(equals + 1)};
    } else if (i + 1 < args.size() && (field->is_bool() ? field->takes(args[i + 1]) : true)) {
      given.values = {args[++i]};
    }
    field->set(given);
  }
  return others;
}

// "24GB", "24GiB", "512MB": units of 1024, as devices are sold.
size_t read_bytes(const std::string& text, const char* flag) {
  static const std::vector<std::pair<std::string, double>> units = {{"TIB", 0x1p40}, {"GIB", 0x1p30}, {"MIB", 0x1p20},
                                                                    {"TB", 0x1p40},  {"GB", 0x1p30},  {"MB", 0x1p20},
                                                                    {"T", 0x1p40},   {"G", 0x1p30},   {"M", 0x1p20}};
  std::string upper;
  for (const char c : text)
    if (c != ' ') upper += char(std::toupper(static_cast<unsigned char>(c)));
  for (const auto& [unit, bytes] : units) {
    if (!ends_with(upper, unit)) continue;
    const std::string number = upper.substr(0, upper.size() - unit.size());
    char* end = nullptr;
    const double value = std::strtod(number.c_str(), &end);
    if (!number.empty() && *end == 0 && value > 0 && value < 1e6) return size_t(value * bytes);
  }
  fail(flag, str("\"", text, "\" is no amount of memory"), "a number and MB, GB or TB: 24GB", "write it so");
}

// Speeds of usual devices by their memory, from their data sheets (dense bf16, memory); the H200's were measured.
struct Device {
  double gigabytes;
  const char* name;
  double bf16, f32, bytes, received, copied;
};
const Device devices[] = {{24, "an RTX 3090", 71e12, 35.6e12, 0.936e12, 12e9, 24e9},
                          {48, "an RTX A6000", 155e12, 38.7e12, 0.768e12, 25e9, 24e9},
                          {80, "an A100", 312e12, 19.5e12, 2.0e12, 200e9, 24e9},
                          {1e9, "an H200", 790e12, 67e12, 4.3e12, 350e9, 50e9}};

// GPUs that are here, or (--device_memory) anywhere; with the speeds of a usual one of that memory.
void add_gpu(PlanMachine& m, const PlanOptions& o, const TrainConfig& c, std::string& speeds) {
  m.device = "cuda", m.own_memory = true;
  if (!o.device_memory.empty()) {
    m.rank_memory = read_bytes(o.device_memory, "--device_memory");
  } else if (cuda_devices() == 0) {
    fail("--device cuda", "there is no GPU here", "a plan for GPUs of a given memory", "add --device_memory 24GB");
  } else {
    measure_gpu(m, *make_backend("cuda", int(c.threads)));
    m.host_memory = make_backend("cpu", 1)->free_memory();
  }
  if (!o.host_memory.empty()) m.host_memory = read_bytes(o.host_memory, "--host_memory");
  const Device* d = devices;
  while (double(m.rank_memory) > d->gigabytes * 1.05 * 0x1p30) ++d;
  m.speed = {d->f32, d->bf16, d->bytes};
  m.bytes_received = d->received, m.bytes_copied = d->copied;
  speeds = str("those of ", d->name);
}

PlanMachine machine_of(const PlanOptions& o, const TrainConfig& c, int64_t world_size, std::string& speeds) {
  PlanMachine m;
  m.ranks = int(o.num_processes ? o.num_processes : std::max<int64_t>(1, world_size));
  m.nodes = int(o.num_machines);
  m.rows = bytes_of_rows(o.rows, o.rows * c.context_length);
  if (m.nodes > m.ranks) fail("--num_machines", str(m.nodes), str("at most --num_processes, ", m.ranks), "give each machine a rank");
  const int here = (m.ranks + m.nodes - 1) / m.nodes;
  if (!o.device_memory.empty() || c.device == "cuda" || (c.device == "auto" && cuda_devices() > 0)) {
    add_gpu(m, o, c, speeds);
  } else {
    const auto backend = make_backend("cpu", int(c.threads));
    m.rank_memory = (o.host_memory.empty() ? backend->free_memory() : read_bytes(o.host_memory, "--host_memory")) / size_t(here);
    if (o.tflops == 0 || o.memory_bandwidth == 0) m.speed = measure_limits(*backend, compute_dtype(c.precision));
    // The ranks of a node share its cores and its memory.
    m.speed.f32 /= here, m.speed.bf16 /= here, m.speed.bytes /= here;
    m.bytes_received = m.speed.bytes / 4;
    speeds = "measured here";
  }
  if (o.tflops > 0) m.speed.bf16 = m.speed.f32 = o.tflops * 1e12;
  if (o.memory_bandwidth > 0) m.speed.bytes = o.memory_bandwidth * 1e9;
  if (o.comm_bandwidth > 0) m.bytes_received = o.comm_bandwidth * 1e9;
  if (o.tflops > 0 || o.memory_bandwidth > 0 || o.comm_bandwidth > 0) speeds += ", but as given";
  return m;
}

// Columns of the table: the holders of the ledger, put together.
struct Column {
  const char* title;
  std::vector<std::string> holders;
};
const std::vector<Column>& columns() {
  static const std::vector<Column> rows = {
      {"base", {"frozen weights"}},
      {"trained", {"trainable values", "trainable values in compute precision"}},
      {"gradients", {"gradients", "squares of gradients", "gradient of a layer", "gradient of the embedding, norm and head"}},
      {"optimizer", {"optimizer state"}},
      {"gathered", {"gathered weights", "copied weights", "gathered trainable values"}},
      {"saved", {"saved activations"}},
      {"logits", {"logits and loss"}},
      {"saving", {"checkpoint snapshot", "gathered for saving"}},
      {"scratch", {}}};
  return rows;
}

size_t column_of(const std::string& holder) {
  const auto& c = columns();
  for (size_t i = 0; i < c.size(); ++i)
    if (std::find(c[i].holders.begin(), c[i].holders.end(), holder) != c[i].holders.end()) return i;
  return c.size() - 1;
}

std::string padded(const std::string& text) { return std::string(text.size() < 11 ? 11 - text.size() : 1, ' ') + text; }

// Of each holder the most of all phases.
void print_host(const Plan& p) {
  std::vector<Ledger::Holder> most;
  for (const auto& phase : p.host_phases)
    for (const auto& h : phase.holders) {
      const auto at = std::find_if(most.begin(), most.end(), [&](const auto& m) { return m.what == h.what; });
      if (at == most.end())
        most.push_back(h);
      else
        at->bytes = std::max(at->bytes, h.bytes);
    }
  std::string text = str("host     ", human_bytes(p.host_needed()), " of the node's memory at most; each rank");
  for (const auto& h : most) text += str(" ", h.what, " ", human_bytes(h.bytes), ",");
  std::puts(str(text, " ", human_bytes(plan_gpu_host_constant), " for code and libraries").c_str());
}

void print_phases(const Plan& p) {
  std::string head = "phase   ";
  for (const auto& column : columns()) head += padded(column.title);
  std::puts((head + padded("sum")).c_str());
  for (const auto& phase : p.phases) {
    std::vector<size_t> bytes(columns().size());
    for (const auto& h : phase.holders) bytes[column_of(h.what)] += h.bytes;
    std::string line = phase.phase + std::string(phase.phase.size() < 8 ? 8 - phase.phase.size() : 1, ' ');
    for (const size_t b : bytes) line += padded(b ? human_bytes(b) : "-");
    std::puts((line + padded(human_bytes(phase.bytes))).c_str());
  }
}

std::string duration(double seconds) {
  if (seconds < 1) return str(fixed(seconds * 1e3, 0), " ms");
  if (seconds < 600) return str(fixed(seconds, 1), " s");
  return seconds < 36000 ? str(fixed(seconds / 60, 0), " min") : str(fixed(seconds / 3600, 1), " h");
}

void print(const PlanOptions& o, const TrainConfig& c, const Plan& p, const std::string& speeds) {
  const auto line = [](const std::string& text) { std::puts(text.c_str()); };
  line(str("model    ", c.model, ": ", human_count(double(p.parameters)), " parameters; ", c.train_type, ", ", c.precision, ", trains ",
           human_count(double(p.trains))));
  line(str("step     ", p.machine.ranks, p.machine.ranks == 1 ? " rank x " : " ranks x ", c.gradient_accumulation_steps, " x ",
           c.batch_size, " rows of ", c.context_length, " tokens: ", human_count(double(p.tokens)), " tokens; ", c.sharding_strategy));
  line("");
  print_phases(p);
  line("");
  line(plan_line(p));
  if (p.machine.gpu())
    line(str("         ", human_bytes(p.gpu_constant()), " of it for CUDA's context and libraries (",
             p.machine.gpu_overhead ? "measured on this GPU" : "an estimate", "), ", human_bytes(plan_gpu_odd_batches),
             " for odd batches"));
  else
    line(str("         ", human_bytes(p.constant()), " of it for code, libraries and the kernels' own buffers"));
  if (p.machine.gpu()) print_host(p);
  const int here = (p.machine.ranks + p.machine.nodes - 1) / p.machine.nodes;
  if (!p.machine.own_memory)
    line(str("node     ", human_bytes(p.needed() * size_t(here)), " for its ", here, here == 1 ? " rank" : " ranks"));
  line(str("work     ", human_count(p.flops), "FLOP and ", human_bytes(size_t(p.bytes_moved)), " moved per rank and step"));
  if (p.copied_to_device > 0)
    line(str("copies   ", human_bytes(size_t(p.copied_to_device)), " from the host and ", human_bytes(size_t(p.copied_to_host)),
             " to it per rank and step, while it computes"));
  if (p.machine.ranks > 1)
    line(str("exchange each rank receives ", human_bytes(size_t(p.gathered)), " of weights, while it computes, and ",
             human_bytes(size_t(p.reduced)), " of gradients per step"));
  line(str("time     ", duration(p.step_seconds), " per step, ", human_count(double(p.tokens) / p.step_seconds), " tokens/s, with speeds ",
           speeds));
  if (o.rows > 0) {
    const double rows_per_step = double(c.batch_size * c.gradient_accumulation_steps * p.machine.ranks);
    line(str("epoch    ", duration(std::ceil(double(o.rows) / rows_per_step) * p.step_seconds), " for ", o.rows, " full rows"));
  }
  if (!o.search) return;
  line(str("fits     batches of up to ", largest_batch(c, p.machine), " rows at this context; contexts of up to ",
           largest_context(c, p.machine), " at this batch"));
  if (p.fits()) return;
  line(p.fits_host() ? str("DOES NOT FIT: ", human_bytes(p.needed() - p.machine.rank_memory), " too much")
                     : str("DOES NOT FIT: ", human_bytes(p.host_needed() - p.machine.host_memory), " too much on the host"));
  const auto advice = plan_advice(c, p.machine);
  for (const auto& text : advice) line("  " + text);
  if (advice.empty()) line("  none of the changes I know makes it fit");
}

}  // namespace

int run_plan(const Arguments& args) {
  PlanOptions o;
  FieldList fields = plan_fields(o);
  if (asks_for_help(args)) {
    std::fputs(help_text(fields).c_str(), stdout);
    return 0;
  }
  const Arguments others = take_own(fields, args);
  const TrainArguments arguments = parse_train(others, true);
  const TrainConfig& c = arguments.config;
  std::string speeds;
  const PlanMachine machine = machine_of(o, c, arguments.world_size, speeds);
  const Plan plan = make_plan(c, machine);
  if (o.json) {
    std::fputs(plan_json(c, plan).c_str(), stdout);
  } else {
    for (const std::string& notice : arguments.notices) say(notice);
    print(o, c, plan, speeds);
  }
  return plan.fits() ? 0 : 3;
}

}  // namespace tessera
