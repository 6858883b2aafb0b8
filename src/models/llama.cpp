// Llama (Touvron et al., 2023; Meta Llama 2, 3): optional biases on all projections of attention or of the mlp.
#include "models/registry.h"

namespace tessera {

void read_llama(const ConfigReader& json, ModelConfig& c) {
  c.qkv_bias = c.o_bias = json.flag_or("attention_bias", false);
  c.mlp_bias = json.flag_or("mlp_bias", false);
}

}  // namespace tessera
