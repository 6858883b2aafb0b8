// The plan as text.
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "io/json.h"
#include "train/plan.h"

namespace tessera {
namespace {

std::string kept_text(const Plan& p) {
  if (p.keeping.layers >= p.layers) return "all activations are kept";
  const char* others = p.keeping.attention ? "attention halves of the others" : "inputs of the others";
  return str(p.keeping.layers ? str("activations of ", p.keeping.layers, " of ", p.layers, " layers are kept, and ") : "",
             p.keeping.layers ? others : str(p.keeping.attention ? "attention halves" : "inputs", " of the layers are kept"));
}

const Ledger::Peak& highest(const Plan& p) {
  const Ledger::Peak* out = &p.phases.front();
  for (const auto& phase : p.phases)
    if (phase.bytes > out->bytes) out = &phase;
  return *out;
}

Json json_of(const std::vector<Ledger::Peak>& phases) {
  Json out = Json::array();
  for (const auto& phase : phases) {
    Json holders = Json::object();
    for (const auto& h : phase.holders) holders[h.what] = h.bytes;
    out.push_back({{"phase", phase.phase}, {"bytes", phase.bytes}, {"holders", holders}});
  }
  return out;
}

}  // namespace

std::string plan_line(const Plan& p) {
  std::string text = str("plan     ", human_bytes(p.needed()), p.machine.ranks > 1 ? " per rank" : "", " at most (", highest(p).phase, ")");
  if (p.machine.rank_memory) text += str(" of ", human_bytes(p.machine.rank_memory));
  if (p.machine.gpu()) {
    text += str("; on the host ", human_bytes(p.host_needed()), p.machine.ranks_of_node() > 1 ? " per node" : "");
    if (p.machine.host_memory) text += str(" of ", human_bytes(p.machine.host_memory));
  }
  return str(text, "; ", kept_text(p));
}

std::string plan_json(const TrainConfig& c, const Plan& p) {
  const Json out = {{"model", c.model},
                    {"train_type", c.train_type},
                    {"precision", c.precision},
                    {"sharding_strategy", c.sharding_strategy},
                    {"context_length", c.context_length},
                    {"batch_size", c.batch_size},
                    {"gradient_accumulation_steps", c.gradient_accumulation_steps},
                    {"ranks", p.machine.ranks},
                    {"nodes", p.machine.nodes},
                    {"own_memory", p.machine.own_memory},
                    {"device", p.machine.device},
                    {"use_cpu_offload", c.use_cpu_offload},
                    {"use_activation_cpu_offload", c.use_activation_cpu_offload},
                    {"optimizer_offload", c.optimizer_offload},
                    {"layers", p.layers},
                    {"keep_layers", p.keeping.layers},
                    {"keep_attention", p.keeping.attention},
                    {"parameters", p.parameters},
                    {"trainable", p.trains},
                    {"phases", json_of(p.phases)},
                    {"peak_bytes", p.peak},
                    {"constant_bytes", p.constant()},
                    {"gpu_constant_bytes", p.machine.gpu() ? p.gpu_constant() : 0},
                    {"gpu_constant_measured", p.machine.gpu_overhead > 0},
                    {"gpu_constant_found_bytes", p.gpu_constant_found},
                    {"rows_bytes", p.machine.rows},
                    {"needed_bytes", p.needed()},
                    {"rank_memory_bytes", p.machine.rank_memory},
                    {"host_phases", json_of(p.host_phases)},
                    {"host_needed_bytes", p.host_needed()},
                    {"host_memory_bytes", p.machine.host_memory},
                    {"fits", p.fits()},
                    {"tokens_per_step", p.tokens},
                    {"flops_per_step", p.flops},
                    {"bytes_moved_per_step", p.bytes_moved},
                    {"bytes_gathered_per_step", p.gathered},
                    {"bytes_reduced_per_step", p.reduced},
                    {"bytes_copied_to_device_per_step", p.copied_to_device},
                    {"bytes_copied_to_host_per_step", p.copied_to_host},
                    {"compute_seconds_per_step", p.compute_seconds},
                    {"seconds_per_step", p.step_seconds}};
  return out.dump(1) + "\n";
}

void hold_to_constant(Plan& p, Comm& comm, Backend& backend) {
  if (!p.machine.gpu()) return;
  for (const int64_t held : gather_values(comm, int64_t(backend.overhead().bytes)))
    p.gpu_constant_found = std::max(p.gpu_constant_found, size_t(held));
  if (p.gpu_constant_found <= p.gpu_constant()) return;
  warn(str("the GPU's context and libraries hold ", human_bytes(p.gpu_constant_found), ", ", human_bytes(p.gpu_constant()),
           " were planned: should memory run out, add --gradient_checkpointing true or take a smaller batch"));
}

void refuse_unfitting(const TrainConfig& c, const Plan& p) {
  if (p.fits()) return;
  std::string advice;
  for (const auto& line : plan_advice(c, p.machine)) advice += str(advice.empty() ? "" : "\n             or ", line);
  const bool host = !p.fits_host();
  const char* each = host ? (p.machine.ranks_of_node() > 1 ? " per node, beside the devices" : " beside the device")
                          : (p.machine.ranks > 1 ? " per rank" : "");
  fail("the memory plan",
       host ? str(human_bytes(p.host_needed()), each, " at most") : str(human_bytes(p.needed()), each, " at most, in ", highest(p).phase),
       str(human_bytes(host ? p.machine.host_memory : p.machine.rank_memory), each, ", what is free"),
       str(advice.empty() ? "a smaller model, or more machines" : advice, "; --force starts all the same"));
}

}  // namespace tessera
