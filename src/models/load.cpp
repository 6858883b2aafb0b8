#include "models/load.h"

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"
#include "models/stored_codes.h"
#include "ops/codebook4.h"
#include "quant/codebook4.h"

namespace tessera {
namespace {

constexpr int64_t piece_elements = int64_t(1) << 20;  // a multiple of 64

// Elements [begin, begin + out.size()) of a dense tensor of the base model, in out's dtype.
void base_values(Tensor out, const std::string& name, int64_t begin, const WeightSource& source, const ModelConfig& c) {
  if (source.base) {
    const bool copied_head = name == "lm_head.weight" && !source.base->find(name);
    read_elements(out, source.base->get(copied_head ? "model.embed_tokens.weight" : name), begin, out.size());
    return;
  }
  std::vector<float> random(size_t(out.size()), ends_with(name, ".bias") ? 0.f : 1.f);
  if (!ends_with(name, ".bias") && !ends_with(name, "norm.weight")) {
    Rng(source.seed, Purpose::init, name).fill_normal(random.data(), uint64_t(begin), uint64_t(out.size()));
    for (float& v : random) v *= float(c.initializer_range);
  }
  dispatch_float(out.dtype, [&]<class T>() { std::copy(random.begin(), random.end(), out.as<T>()); });
}

// PEFT's initialisation (reset_lora_parameters): A uniform in +-1/sqrt(in) or N(0, 1/r); B zero, or as A when "false".
void init_adapter(float* out, const PartPlace& place, int64_t begin, int64_t count, const WeightSource& source) {
  const bool is_a = ends_with(place.name, ".lora_A.weight");
  const Rng rng(source.seed, Purpose::init, place.name);
  const double in = double(place.shape.cols()), rank = double(place.shape.dim[0]);
  for (int64_t i = 0; i < count; ++i) {
    const auto index = uint64_t(begin + i);
    if (!is_a && source.init_lora_weights != "false") {
      out[i] = 0;
    } else if (is_a && source.init_lora_weights == "gaussian") {
      out[i] = float(rng.normal(index) / rank);
    } else {
      out[i] = float((2.0 * rng.uniform(index) - 1) / std::sqrt(in));
    }
  }
}

bool is_adapter(const std::string& name) { return ends_with(name, ".lora_A.weight") || ends_with(name, ".lora_B.weight"); }

void load_trainable(const PartPlace& place, const WeightSource& source, const ModelConfig& c, Range mine, float* values) {
  const Range own = intersect(place.element_range(), mine);
  if (!own.size()) return;
  const auto begin = int64_t(own.begin - place.begin), count = int64_t(own.size());
  float* const to = values + (own.begin - mine.begin);
  if (!is_adapter(place.name)) {
    for (int64_t at = 0; at < count; at += piece_elements)
      base_values(Tensor{to + at, Dtype::f32, {std::min(piece_elements, count - at)}, nullptr}, place.name, begin + at, source, c);
  } else if (source.adapter) {
    read_elements(Tensor{to, Dtype::f32, {count}, nullptr}, source.adapter->get("base_model.model." + place.name), begin, count);
  } else {
    init_adapter(to, place, begin, count, source);
  }
}

void load_dense(const PartPlace& place, const WeightSource& source, const ModelConfig& c, Range mine, std::byte* bytes) {
  const Range own = intersect(place.frozen_range(), mine);
  if (!own.size()) return;
  const size_t size = size_of(place.dtype);
  for (size_t at = own.begin; at < own.end; at += size_t(piece_elements) * size) {
    const auto count = int64_t(std::min(own.end - at, size_t(piece_elements) * size) / size);
    base_values(Tensor{bytes + (at - mine.begin), place.dtype, {count}, nullptr}, place.name, int64_t((at - place.begin) / size), source,
                c);
  }
}

void copy_owned(const PartPlace& place, const void* whole, Range mine, std::byte* bytes) {
  const Range own = intersect(place.frozen_range(), mine);
  if (own.size())
    std::memcpy(bytes + (own.begin - mine.begin), static_cast<const std::byte*>(whole) + (own.begin - place.begin), own.size());
}

// Codes of the blocks this rank owns go to their place; their scales to `absmax`. Returns the range of those blocks.
Range encode_owned(const PartPlace& codes, const Codebook4& store, int64_t n, std::vector<float>& absmax, const WeightSource& source,
                   const Model& m, Range mine, std::byte* bytes, Backend* home) {
  const Range own = intersect(codes.frozen_range(), mine);
  constexpr size_t block_bytes = block4 / 2;
  const Range blocks{(own.begin - std::min(own.begin, codes.begin)) / block_bytes,
                     own.size() ? (own.end - codes.begin + block_bytes - 1) / block_bytes : 0};
  if (!own.size()) return {0, 0};
  std::vector<std::byte> scratch(size_t(std::min(piece_elements, n)) * size_of(m.options.compute));
  for (auto at = int64_t(blocks.begin) * block4; at < std::min(n, int64_t(blocks.end) * block4); at += piece_elements) {
    const int64_t count = std::min({piece_elements, n - at, int64_t(blocks.end) * block4 - at});
    const Tensor x{scratch.data(), m.options.compute, {count}, home};
    base_values(x, codes.name, at, source, m.config);
    codebook4_encode(Tensor{bytes + (codes.begin + size_t(at) / 2 - mine.begin), Dtype::u8, {(count + 1) / 2}, home},
                     Tensor{absmax.data() + at / block4, Dtype::f32, {(count + block4 - 1) / block4}, home}, x, store.format->table,
                     block4);
  }
  return blocks;
}

void copy_stored(const UnitLayout& layout, const std::string& name, const StoredCodes& stored, Range mine, std::byte* bytes) {
  copy_owned(layout.find(name), stored.codes->data, mine, bytes);
  copy_owned(layout.find(name + ".absmax"), stored.absmax->data, mine, bytes);
  if (!stored.nested()) return;
  copy_owned(layout.find(name + ".nested_absmax"), stored.nested_absmax->data, mine, bytes);
  copy_owned(layout.find(name + ".nested_offset"), &stored.nested_offset, mine, bytes);
}

void load_codebook4(Model& m, const UnitLayout& layout, const std::string& name, const Weight& w, const WeightSource& source, Range mine,
                    std::byte* bytes, const Exchange& exchange, Backend* home) {
  const auto& store = std::get<Codebook4>(w.store);
  const int64_t n = w.out * w.in;
  if (const auto stored = source.base ? find_stored_codes(*source.base, name, w.out, w.in) : std::nullopt) {
    copy_stored(layout, name, *stored, mine, bytes);
    return;
  }
  std::vector<float> absmax(size_t((n + block4 - 1) / block4));
  exchange(absmax, encode_owned(layout.find(name), store, n, absmax, source, m, mine, bytes, home));
  if (!store.nested) {
    copy_owned(layout.find(name + ".absmax"), absmax.data(), mine, bytes);
    return;
  }
  const NestedAbsmax nested = encode_absmax(absmax);
  copy_owned(layout.find(name + ".absmax"), nested.codes.data(), mine, bytes);
  copy_owned(layout.find(name + ".nested_absmax"), nested.nested_absmax.data(), mine, bytes);
  copy_owned(layout.find(name + ".nested_offset"), &nested.offset, mine, bytes);
}

bool of_codebook(const PartPlace& p) {
  return p.dtype == Dtype::u8 || ends_with(p.name, ".absmax") || ends_with(p.name, ".nested_absmax") || ends_with(p.name, ".nested_offset");
}

}  // namespace

void load_unit(Model& m, int unit, const WeightSource& source, Range frozen, std::byte* frozen_bytes, Range trainable, float* values,
               const Exchange& exchange, Backend* home) {
  const UnitLayout& layout = m.units[size_t(unit)];
  for (const PartPlace& place : layout.parts) {
    if (place.trains) {
      load_trainable(place, source, m.config, trainable, values);
    } else if (!of_codebook(place)) {
      load_dense(place, source, m.config, frozen, frozen_bytes);
    }
  }
  if (unit == m.root_unit()) return;
  for_each_linear(m.layers[size_t(unit)], [&](Linear& l) {
    if (std::holds_alternative<Codebook4>(l.weight.store))
      load_codebook4(m, layout, str("model.layers.", unit, ".", l.name, ".weight"), l.weight, source, frozen, frozen_bytes, exchange, home);
  });
}

}  // namespace tessera
