// Mistral (Jiang et al., 2023): Llama with a sliding window on every layer, or none when the key is null.
#include "models/registry.h"

namespace tessera {

void read_mistral(const ConfigReader& json, ModelConfig& c) {
  c.windows.assign(static_cast<size_t>(c.layers), json.integer_or("sliding_window", 0));
}

}  // namespace tessera
