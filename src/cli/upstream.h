// Flags of fsdp_qlora, Hugging Face's trainers (transformers, TRL, PEFT's example) and accelerate that are no field of ours. Each is either
// without effect here by design, which is said once, or not yet built, which is refused by name. None is ignored in silence.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "cli/field.h"

namespace tessera {

struct UpstreamFlag {
  std::string_view name;
  std::string_view same;  // values (separated by '|') that ask for what we do anyway: accepted
  std::string_view note;  // why any other value has no effect here; "" : it is refused as not yet built
};

const std::vector<UpstreamFlag>& upstream_flags();
const UpstreamFlag* find_upstream_flag(std::string_view name);  // null when there is none
std::vector<std::string> upstream_names();

// Judges flags that have rows here, and values of fields that are known and not built. Returns the notices; throws one Error that names
// every refused flag.
std::vector<std::string> judge_upstream(const std::vector<Given>&, FieldList&);

}  // namespace tessera
