// Mistral (Jiang et al., 2023): Llama with a sliding window on every layer, or none when the key is null; 4096 when it is absent
// (transformers, MistralConfig).
#include "models/registry.h"

namespace tessera {

void read_mistral(const ConfigReader& json, ModelConfig& c) {
  c.windows.assign(static_cast<size_t>(c.layers), json.mentions("sliding_window") ? json.integer_or("sliding_window", 0) : 4096);
}

}  // namespace tessera
