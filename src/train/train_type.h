// Train types as rows: base format x adapter x what trains. The string is read here and nowhere else.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

struct TrainType {
  std::string_view name;
  bool quantized = false;        // the base takes the format of --quant_format
  bool adapter = false;          // LoRA; without it everything trains
  bool fsdp_qlora_file = false;  // also writes fsdp_qlora's model_state_dict.safetensors (lora_AB names)
};

const TrainType& find_train_type(std::string_view name);  // throws Error naming the allowed ones
std::vector<std::string> train_type_names();

}  // namespace tessera
