#include "bench/flops.h"

namespace tessera {
namespace {

double layer_weights(const ModelConfig& c) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return double(c.layers) * double(c.hidden * (2 * q + 2 * kv) + 3 * c.hidden * c.intermediate);
}

double head_weights(const ModelConfig& c) { return double(c.hidden) * double(c.vocab); }

}  // namespace

double forward_flops(const ModelConfig& c) { return 2 * (layer_weights(c) + head_weights(c)); }

double training_flops(const ModelConfig& c, StepKind kind) {
  const double forward = forward_flops(c), again = kind.recompute ? 2 * layer_weights(c) : 0;
  return forward + again + forward * (kind.full ? 2 : 1);
}

}  // namespace tessera
