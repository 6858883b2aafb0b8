// What would fit, found by dry runs of what is asked.
#include <algorithm>

#include "core/text.h"
#include "train/plan.h"

namespace tessera {
namespace {

struct Asked {
  TrainConfig config;
  PlanMachine machine;
};

// With as little kept as the flags allow; of the first rank. Others differ by a grain of each unit, some KiB.
Plan least(const Asked& a) {
  const Keeping keeping{a.config.gradient_checkpointing == "false" ? Keeping::all_layers : 0, false};
  return dry_run(a.config, a.machine, keeping, 0);
}

// A host that is too small counts as a rank's memory that is too small in the same ratio.
size_t least_memory(const Asked& a) {
  const Plan p = least(a);
  if (p.fits_host()) return p.needed();
  return std::max(p.needed(), size_t(double(a.machine.rank_memory) * double(p.host_needed()) / double(a.machine.host_memory)) + 1);
}

bool fits(const Asked& a) { return least(a).fits(); }

// The largest n in [1, most] with memory(n) <= limit; 0: none. Memory grows with n, nearly in a line, so the next guess lies on the line
// between what fits and what does not.
template <class F>
int64_t largest(int64_t most, size_t limit, F&& memory) {
  int64_t good = 0, bad = most + 1;
  double at_good = 0, at_bad = 0;
  int64_t next = 1;
  while (good + 1 < bad) {
    const double at = double(memory(next));
    const bool fits = at <= double(limit);
    (fits ? good : bad) = next;
    (fits ? at_good : at_bad) = at;
    const double share = (double(limit) - at_good) / std::max(1.0, at_bad - at_good);
    const int64_t on_line = good + int64_t(share * double(bad - good)) + (fits ? 1 : 0);
    next = at_bad == 0 ? std::min(2 * good, most) : std::clamp(on_line, good + 1, bad - 1);
    if (at_bad == 0 && good == most) break;
  }
  return good;
}

// One thing that can be changed, and what it costs. change: false when it is so already.
struct Change {
  const char* cost;
  std::string (*change)(Asked&);  // the flags, or ""
};

std::string smaller_batch(Asked& a) {
  TrainConfig& c = a.config;
  if (c.batch_size == 1) return "";
  c.gradient_accumulation_steps *= c.batch_size;
  c.batch_size = 1;
  return str("--batch_size 1 --gradient_accumulation_steps ", c.gradient_accumulation_steps);
}

template <class T>
std::string set(T& field, const T& value, const char* flags) {
  if (field == value) return "";
  field = value;
  return flags;
}

// Cheapest first.
const std::vector<Change>& changes() {
  static const std::vector<Change> rows = {
      {"no cost in numbers, up to a third more time",
       [](Asked& a) {
         a.config.keep_layers = "auto";
         return set<std::string>(a.config.gradient_checkpointing, "true", "--gradient_checkpointing true");
       }},
      {"the same step, in more passes", smaller_batch},
      {"the same step, more to gather",
       [](Asked& a) {
         if (a.machine.ranks == 1) return std::string();
         return set<std::string>(a.config.sharding_strategy, "full_shard", "--sharding_strategy full_shard");
       }},
      {"layers' inputs wait on the host; no cost in numbers",
       [](Asked& a) {
         if (!a.machine.gpu() || a.config.gradient_checkpointing == "false") return std::string();
         return set(a.config.use_activation_cpu_offload, true, "--use_activation_cpu_offload true");
       }},
      {"frozen weights stay on the host and are copied ahead; no cost in numbers",
       [](Asked& a) {
         if (!a.machine.gpu() || a.config.train_type == "full") return std::string();
         return set(a.config.use_cpu_offload, true, "--use_cpu_offload true");
       }},
      {"the optimizer works on the host; more time per step",
       [](Asked& a) { return a.machine.gpu() ? set(a.config.optimizer_offload, true, "--optimizer_offload true") : std::string(); }},
      {"half the bytes; other numbers in the last digits",
       [](Asked& a) { return set<std::string>(a.config.precision, "bf16", "--precision bf16"); }},
      {"a base of 4 bits instead of 16; a slightly worse model",
       [](Asked& a) {
         const bool lora = a.config.train_type == "lora" || a.config.train_type == "custom_lora";
         return lora ? set<std::string>(a.config.train_type, "qlora", "--train_type qlora") : std::string();
       }},
      {"adapters instead of all weights",
       [](Asked& a) {
         return a.config.train_type == "full" ? set<std::string>(a.config.train_type, "qlora", "--train_type qlora") : std::string();
       }},
      {"shorter rows: what is longer is cut",
       [](Asked& a) {
         const int64_t most = largest_context(a.config, a.machine);
         if (most == 0 || most >= a.config.context_length) return std::string();
         a.config.context_length = most;
         return str("--context_length ", most);
       }},
      {"more machines or devices",
       [](Asked& a) {
         if (a.machine.rank_memory == 0 || !(a.machine.own_memory || a.machine.nodes > 1)) return std::string();
         for (const int times : {2, 4, 8, 16, 32}) {
           Asked more = a;
           more.machine.ranks *= times, more.machine.nodes *= a.machine.own_memory ? 1 : times;
           if (!fits(more)) continue;
           a = more;
           return str("--num_processes ", a.machine.ranks);
         }
         return std::string();
       }},
  };
  return rows;
}

}  // namespace

int64_t largest_batch(const TrainConfig& c, const PlanMachine& machine) {
  return largest(4096, machine.rank_memory, [&](int64_t n) {
    Asked a{c, machine};
    a.config.batch_size = n;
    return least_memory(a);
  });
}

int64_t largest_context(const TrainConfig& c, const PlanMachine& machine) {
  return 64 * largest(int64_t(1) << 13, machine.rank_memory, [&](int64_t n) {
           Asked a{c, machine};
           a.config.context_length = 64 * n;
           return least_memory(a);
         });
}

std::vector<std::string> plan_advice(const TrainConfig& c, const PlanMachine& machine) {
  std::vector<std::string> out;
  Asked all{c, machine};
  std::string flags;
  for (const Change& change : changes()) {
    Asked alone{c, machine};
    const std::string flag = change.change(alone);
    if (flag.empty()) continue;
    const auto line = [&](const std::string& what, const Asked& a) {
      const Plan p = least(a);
      const std::string host = a.machine.gpu() ? str(", ", human_bytes(p.host_needed()), " on the host") : "";
      return str(what, ": ", human_bytes(p.needed()), host, "; ", change.cost);
    };
    if (fits(alone)) {
      out.push_back(line(flag, alone));
      continue;
    }
    if (!out.empty()) continue;
    const std::string together = change.change(all);
    flags += str(flags.empty() ? "" : " ", together);
    if (flags != flag && fits(all)) out.push_back(line(flags, all));
  }
  return out;
}

}  // namespace tessera
