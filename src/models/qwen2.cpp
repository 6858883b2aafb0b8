// Qwen2 (Yang et al., 2024): Llama with biases on q, k, v; with use_sliding_window, layers from max_window_layers on have a window.
#include "models/registry.h"

namespace tessera {

void read_qwen2(const ConfigReader& json, ModelConfig& c) {
  c.qkv_bias = true;
  if (!json.flag_or("use_sliding_window", false)) return;
  const int64_t first = json.integer_or("max_window_layers", 28, 0), window = json.integer_or("sliding_window", 0);
  for (int64_t l = first; l < c.layers; ++l) c.windows[size_t(l)] = window;
}

}  // namespace tessera
