// From a Hugging Face folder into flat unit buffers: each rank reads, converts and quantizes only what it owns.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/range.h"
#include "io/safetensors.h"
#include "models/model.h"

namespace tessera {

// Throws unless the files hold exactly the tensors the config demands, with their shapes, in F32, F16 or BF16; names the first that
// differs. Old rotary_emb.inv_freq tensors are ignored; a tied model may hold an lm_head.weight equal to its embedding.
void check_checkpoint(const ModelConfig&, const TensorFiles&);

// Where values come from.
struct WeightSource {
  const TensorFiles* base = nullptr;     // null: random weights, N(0, initializer_range), norms 1, biases 0, from the seed
  const TensorFiles* adapter = nullptr;  // null: PEFT's initialisation from the seed
  std::string init_lora_weights = "true";
  uint64_t seed = 42;
};

// Completes `values` on every rank of the group when each has filled in its own range (ranges ascend with the rank). Called for each
// quantized tensor with one value per block; with one rank it does nothing.
using Exchange = std::function<void(std::vector<float>& values, Range mine)>;

// Fills bytes [frozen.begin, frozen.end) of a unit at `frozen_bytes`, and elements `trainable` of its masters at `values` (f32).
// Scratch is one piece of a tensor. Collective when `exchange` is. `home` computes the codes.
void load_unit(Model&, int unit, const WeightSource&, Range frozen, std::byte* frozen_bytes, Range trainable, float* values,
               const Exchange& exchange, Backend* home);

// Bytes of scratch that load_unit takes at most, for any unit.
size_t load_scratch(const Model&);

}  // namespace tessera
