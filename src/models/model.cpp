#include "models/model.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdlib>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr size_t frozen_alignment = 256, trainable_alignment = 64;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

Param dense_param(Shape shape, const ModelOptions& o) {
  Param p;
  p.value.dtype = o.compute;
  p.value.shape = shape;
  p.trains = o.train_base;
  return p;
}

std::optional<Adapter> make_adapter(const Weight& w, const std::string& path, const ModelOptions& o) {
  const auto spec = o.adapters.find(path);
  if (spec == o.adapters.end()) return std::nullopt;
  Adapter a;
  for (Param* p : {&a.a, &a.b}) p->value.dtype = o.compute, p->trains = true;
  a.a.value.shape = {spec->second.rank, w.in};
  a.b.value.shape = {w.out, spec->second.rank};
  a.scale = spec->second.scale;
  a.dropout = spec->second.dropout;
  return a;
}

Linear make_linear(const char* name, int layer, int64_t out, int64_t in, bool bias, const ModelOptions& o) {
  Linear l;
  l.name = name;
  l.layer = layer;
  l.weight = make_weight(o.format ? *o.format : find_format("dense"), o.double_quant, out, in, o.compute, o.train_base);
  if (bias) l.bias = dense_param({out}, o);
  l.adapter = make_adapter(l.weight, str("model.layers.", layer, ".", name), o);
  return l;
}

DecoderLayer make_layer(const ModelConfig& c, const ModelOptions& o, int layer) {
  DecoderLayer l;
  l.H = c.heads, l.K = c.kv_heads, l.D = c.head_dim, l.F = c.intermediate, l.C = c.hidden;
  l.eps = float(c.rms_eps);
  l.attention = {1 / std::sqrt(float(c.head_dim)), c.windows[size_t(layer)]};
  l.input_norm = l.post_norm = dense_param({c.hidden}, o);
  const int64_t q = l.H * l.D, kv = l.K * l.D;
  l.q = make_linear("self_attn.q_proj", layer, q, l.C, c.qkv_bias, o);
  l.k = make_linear("self_attn.k_proj", layer, kv, l.C, c.qkv_bias, o);
  l.v = make_linear("self_attn.v_proj", layer, kv, l.C, c.qkv_bias, o);
  l.o = make_linear("self_attn.o_proj", layer, l.C, q, c.o_bias, o);
  l.gate = make_linear("mlp.gate_proj", layer, l.F, l.C, c.mlp_bias, o);
  l.up = make_linear("mlp.up_proj", layer, l.F, l.C, c.mlp_bias, o);
  l.down = make_linear("mlp.down_proj", layer, l.C, l.F, c.mlp_bias, o);
  return l;
}

UnitLayout lay_out(Model& m, int unit) {
  UnitLayout layout;
  visit_unit(m, unit, [&](const std::string& name, const Param& p) {
    PartPlace place{name, p.value.shape, p.trains ? Dtype::f32 : p.value.dtype, p.trains, 0};
    if (p.trains) {
      place.begin = size_t(layout.trainable);
      layout.trainable += int64_t(round_up(size_t(place.shape.size()), trainable_alignment));
    } else {
      place.begin = layout.frozen_bytes;
      layout.frozen_bytes += round_up(place.bytes(), frozen_alignment);
    }
    layout.parts.push_back(std::move(place));
  });
  return layout;
}

void check_adapters(const ModelConfig& c, const ModelOptions& o) {
  if (o.adapters.count("lm_head"))
    fail("lora_target_modules", "lm_head", "the seven projections of the decoder layers", "an adapter on lm_head is not supported yet");
  const auto modules = linear_modules(c);
  for (const auto& [path, spec] : o.adapters)
    if (std::find(modules.begin(), modules.end(), path) == modules.end())
      fail("adapter", str("module ", path), join(modules, ", "), "name a linear layer of this model");
}

}  // namespace

const PartPlace& UnitLayout::find(const std::string& name) const {
  for (const auto& p : parts)
    if (p.name == name) return p;
  assert(false && "no such part");
  std::abort();
}

int64_t Model::trainable_parameters() const {
  int64_t n = 0;
  for (const auto& unit : units)
    for (const auto& p : unit.parts)
      if (p.trains) n += p.shape.size();
  return n;
}

std::vector<std::string> linear_modules(const ModelConfig& c) {
  std::vector<std::string> out;
  for (int64_t l = 0; l < c.layers; ++l)
    for (const char* name :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
      out.push_back(str("model.layers.", l, ".", name));
  out.emplace_back("lm_head");
  return out;
}

Model make_model(const ModelConfig& c, const ModelOptions& o) {
  check_adapters(c, o);
  Model m;
  m.config = c;
  m.options = o;
  for (int l = 0; l < int(c.layers); ++l) m.layers.push_back(make_layer(c, o, l));
  m.root.C = c.hidden, m.root.V = c.vocab, m.root.eps = float(c.rms_eps);
  m.root.embed = dense_param({c.vocab, c.hidden}, o);
  m.root.norm = dense_param({c.hidden}, o);
  if (!c.tied) m.root.head = dense_param({c.vocab, c.hidden}, o);
  for (int unit = 0; unit <= m.root_unit(); ++unit) m.units.push_back(lay_out(m, unit));
  return m;
}

void bind(Model& m, int unit, const std::byte* frozen, std::byte* trainable, Tensor gradient, Backend* home) {
  const auto& places = m.units[size_t(unit)].parts;
  size_t next = 0;
  visit_unit(m, unit, [&](const std::string&, Param& p) {
    const PartPlace& place = places[next++];
    p.value.home = home;
    if (!place.trains) {
      p.value.data = const_cast<std::byte*>(frozen) + place.begin;
      return;
    }
    p.value.data = trainable + place.begin * size_of(p.value.dtype);
    p.grad = {};
    if (!gradient.empty()) p.grad = Tensor{gradient.as<float>() + place.begin, Dtype::f32, place.shape, home};
  });
}

}  // namespace tessera
