// The memory plan: what a run will hold, phase by phase, before a byte of the model is read. It is no formula: the run's own builders and
// its own pass are executed over a device that computes nothing (backend/dry_backend.h) and a group of ranks that is not there
// (comm/dry_comm.h), and the ledger is read afterwards. Needs config.json alone. What a rank really holds is entered in the same ledger by
// the same calls, so used <= planned is a law that tests hold.
#pragma once
#include <string>
#include <vector>

#include "backend/profile.h"
#include "core/ledger.h"
#include "train/build.h"
#include "train/config.h"

namespace tessera {

// What one rank has, and how quick it is.
struct PlanMachine {
  int ranks = 1, nodes = 1;
  std::string device = "cpu";  // or "cuda"; "cuda_host": a GPU whose exchanges pass through the host (tests)
  bool own_memory = false;     // each rank has a device of its own: frozen weights are shards that are gathered, not one copy per node
  size_t rank_memory = 0;      // bytes a rank may hold in all, of its device where that has memory of its own
  size_t host_memory = 0;      // bytes the ranks of a node may hold on the host beside their devices; 0: unknown
  size_t rows = 0;             // bytes of the data's rows, of which every rank has a copy
  size_t gpu_overhead = 0;     // Backend::overhead() of the GPUs that are here, the largest, in steps of 16 MiB; 0: not known
  ProfileLimits speed;         // of a rank; 0: unknown
  double bytes_received = 0;   // per second, by a rank from the others; 0: unknown
  double bytes_copied = 0;     // per second, between a device and its host, each way; 0: unknown
  bool gpu() const { return device != "cpu"; }
  int ranks_of_node() const { return (ranks + nodes - 1) / nodes; }
};

// This machine's memory that is free now, shared by the ranks on it unless each has its own; the least of all ranks. What a GPU's context
// holds already counts as free: the plan has it in its constant. Speeds are not known. Collective.
PlanMachine this_machine(Comm&, Backend&);
// Sets rank_memory and gpu_overhead to what this process can have of this GPU.
void measure_gpu(PlanMachine&, Backend&);

// Bytes of so many rows and tokens in memory.
inline size_t bytes_of_rows(int64_t rows, int64_t tokens) { return size_t(rows) * sizeof(Example) + size_t(tokens) * 2 * sizeof(int32_t); }

// Code, libraries, stacks and the kernels' packing buffers: what a process holds beside the ledger. Measured: docs/benchmarks.md.
constexpr size_t plan_constant = size_t(96) << 20;
// Of a GPU: context, libraries and their kernels, where they cannot be measured because the GPU is not here; an estimate. Of the process
// beside it: driver, libraries, their buffers; an estimate.
constexpr size_t plan_gpu_constant = size_t(614) << 20, plan_gpu_host_constant = size_t(512) << 20;
// More than is measured before the model is there: kernels are loaded when they first run. An estimate; used and planned are compared after
// set-up (hold_to_constant) and by bench_step.
constexpr size_t plan_gpu_loaded_later = size_t(32) << 20;
// More room than a full batch takes: fewer targets may be cut into larger pieces of logits, each of at most so much (nn/root.cpp).
constexpr size_t plan_gpu_odd_batches = size_t(64) << 20;
// Of their limits (FLOPs and bytes) steps reach this share. Measured: docs/benchmarks.md.
constexpr double plan_share_of_limit = 0.8;

struct Plan {
  PlanMachine machine;
  Keeping keeping;
  int64_t layers = 0, parameters = 0, trains = 0;
  std::vector<Ledger::Peak> phases;              // of the rank that holds most
  size_t peak = 0;                               // of the phases
  std::vector<Ledger::Peak> host_phases;         // beside a device: what this rank holds on the host
  size_t host_peak = 0;                          // of them
  size_t arena = 0;                              // bytes of the arena at most; on a GPU with room for odd batches
  int64_t tokens = 0;                            // of a step, all ranks
  double flops = 0, bytes_moved = 0;             // of a step, this rank
  double gathered = 0, reduced = 0;              // bytes this rank receives in a step; gathers run beside the computation
  double copied_to_device = 0;                   // bytes from the host in a step, beside the computation
  double copied_to_host = 0;                     // likewise; the two ways do not wait for each other
  double compute_seconds = 0, step_seconds = 0;  // 0: speeds unknown
  size_t gpu_constant_found = 0;                 // of a run, after set-up; 0: not known
  size_t gpu_constant() const;                   // context and libraries: measured here, or the estimate
  size_t constant() const { return machine.gpu() ? gpu_constant() + plan_gpu_odd_batches : plan_constant; }
  size_t needed() const { return peak + constant() + (machine.gpu() ? 0 : machine.rows); }
  size_t host_needed() const {  // by all ranks of a node, beside their devices
    return machine.gpu() ? size_t(machine.ranks_of_node()) * (host_peak + plan_gpu_host_constant + machine.rows) : 0;
  }
  bool fits_host() const { return machine.host_memory == 0 || host_needed() <= machine.host_memory; }
  bool fits() const { return (machine.rank_memory == 0 || needed() <= machine.rank_memory) && fits_host(); }
};

// One dry run of this rank with these activations kept: a step of full rows, and a checkpoint when one is due.
Plan dry_run(const TrainConfig&, const PlanMachine&, Keeping, int rank);
// The plan of the rank that holds most (the first or the last), with as much kept as --gradient_checkpointing and --keep_layers say, and
// where they say auto as much as leaves a fifth of the memory free.
Plan make_plan(const TrainConfig&, const PlanMachine&);

// The largest values that still fit, everything else as it is; 0: none. With as little kept as allowed.
int64_t largest_batch(const TrainConfig&, const PlanMachine&);
int64_t largest_context(const TrainConfig&, const PlanMachine&);  // a multiple of 64

// One change each that would make it fit, cheapest first: "--gradient_checkpointing true: 21.3 GiB, a third more time".
std::vector<std::string> plan_advice(const TrainConfig&, const PlanMachine&);

std::string plan_line(const Plan&);                      // the sum, for the start of a run
std::string plan_json(const TrainConfig&, const Plan&);  // plan.json: docs/formats.md
// Throws Error when it does not fit.
void refuse_unfitting(const TrainConfig&, const Plan&);
// Measures what the GPUs' contexts and libraries hold now, keeps it in the plan, and warns where that is more than was planned. Collective.
void hold_to_constant(Plan&, Comm&, Backend&);

}  // namespace tessera
