// Model: the layers of one ModelConfig as structs with shapes but no memory, and the layout of their stored arrays in flat buffers.
// A unit is a decoder layer, or the root (embedding, final norm, head), which is the last unit. Memory is bound unit by unit, wherever
// the bytes are at that moment; the model does not know who owns them.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "core/range.h"
#include "models/config.h"
#include "nn/decoder_layer.h"
#include "nn/root.h"

namespace tessera {

// An adapter for one module path ("model.layers.0.self_attn.q_proj").
struct AdapterSpec {
  int64_t rank = 0;
  float scale = 1;
  float dropout = 0;
};

struct ModelOptions {
  const Format* format = nullptr;  // of the seven projections of every layer; null: dense
  bool double_quant = false;
  Dtype compute = Dtype::f32;  // of dense values, decoded weights and activations
  bool train_base = false;     // everything trains (train_type full); REQUIRES dense
  std::map<std::string, AdapterSpec> adapters;
};

// One stored array of a unit: its name in files and its place in the unit's flat buffer.
struct PartPlace {
  std::string name;  // "model.layers.0.self_attn.q_proj.weight", "....weight.absmax", "....lora_A.weight"
  Shape shape;
  Dtype dtype;  // as stored in the frozen buffer; trainable parts are f32 masters
  bool trains = false;
  size_t begin = 0;  // frozen: bytes from the start, a multiple of 256; trainable: elements, a multiple of 64
  size_t bytes() const { return size_t(shape.size()) * size_of(dtype); }
  Range frozen_range() const { return {begin, begin + bytes()}; }
  Range element_range() const { return {begin, begin + size_t(shape.size())}; }
};

struct UnitLayout {
  std::vector<PartPlace> parts;
  size_t frozen_bytes = 0;                               // a multiple of 256
  int64_t trainable = 0;                                 // a multiple of 64
  const PartPlace& find(const std::string& name) const;  // REQUIRES: present
};

struct Model {
  ModelConfig config;
  ModelOptions options;
  std::vector<DecoderLayer> layers;
  Root root;
  std::vector<UnitLayout> units;  // one per layer, then the root

  int root_unit() const { return int(layers.size()); }
  int64_t trainable_parameters() const;
};

Model make_model(const ModelConfig&, const ModelOptions&);
// Module paths of all linear layers, lm_head included: what adapters may target.
std::vector<std::string> linear_modules(const ModelConfig&);

// Points a unit's arrays into these buffers. gradient: f32, UnitLayout::trainable elements; may be empty in evaluation.
void bind(Model&, int unit, const std::byte* frozen, std::byte* trainable, Tensor gradient, Backend* home);

// Calls v(name in files, Param&) for each stored array of a unit, in layout order.
template <class V>
void visit_unit(Model& m, int unit, V&& v) {
  if (unit == m.root_unit()) {
    parts(m.root, v);
  } else {
    const std::string prefix = "model.layers." + std::to_string(unit) + ".";
    parts(m.layers[size_t(unit)], [&](const std::string& name, Param& p) { v(prefix + name, p); });
  }
}

}  // namespace tessera
