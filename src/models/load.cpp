#include "models/load.h"

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"
#include "models/stored_codes.h"
#include "ops/codebook4.h"
#include "ops/elementwise.h"
#include "quant/codebook4.h"

namespace tessera {
namespace {

// Of a tensor that is read where it lies: its pages leave this process's memory after each piece. A multiple of 64.
constexpr int64_t piece_elements = int64_t(1) << 22;
// Of a tensor that is converted on its way to the codes: the scratch stays in the cache. A multiple of 64.
constexpr int64_t scratch_elements = int64_t(1) << 19;

// What all parts of one unit need.
struct Loader {
  const Model& model;
  const WeightSource& source;
  Backend* home;
  std::vector<std::byte> scratch;  // scratch_elements in compute dtype, once they are needed
};

const StoredTensor& stored(const Loader& l, const std::string& name) {
  const bool copied_head = name == "lm_head.weight" && !l.source.base->find(name);
  return l.source.base->get(copied_head ? "model.embed_tokens.weight" : name);
}

void read_piece(Tensor out, const StoredTensor& from, int64_t begin) {
  const Tensor there = from.view(begin, out.size(), out.home);
  const bool floating = from.dtype == Dtype::f32 || from.dtype == Dtype::bf16 || from.dtype == Dtype::f16;
  if (floating && !there.empty()) {
    convert(out, there);
  } else {
    read_elements(out, from, begin, out.size());
  }
  from.forget(begin, out.size());
}

// Elements [begin, begin + out.size()) of a dense tensor of the base model, in out's dtype.
void base_values(Tensor out, const std::string& name, int64_t begin, const Loader& l) {
  const int64_t n = out.size();
  const auto piece = [&](int64_t at) {
    return out.reshaped({n, 1}).rows_from(at, std::min(piece_elements, n - at)).reshaped({std::min(piece_elements, n - at)});
  };
  if (l.source.base) {
    const StoredTensor& from = stored(l, name);
    for (int64_t at = 0; at < n; at += piece_elements) read_piece(piece(at), from, begin + at);
  } else if (ends_with(name, ".bias") || ends_with(name, "norm.weight")) {
    dispatch_float(out.dtype, [&]<class T>() { std::fill_n(out.as<T>(), n, T(ends_with(name, ".bias") ? 0.f : 1.f)); });
  } else {
    random_normal(out, Rng(l.source.seed, Purpose::init, name), uint64_t(begin), float(l.model.config.initializer_range));
  }
}

// PEFT's initialisation (reset_lora_parameters): A uniform in +-1/sqrt(in) or N(0, 1/r); B zero, or as A when "false".
void init_adapter(float* out, const PartPlace& place, int64_t begin, int64_t count, const WeightSource& source) {
  const bool is_a = ends_with(place.name, ".lora_A.weight");
  const Rng rng(source.seed, Purpose::init, place.name);
  const double root = std::sqrt(double(place.shape.cols())), rank = double(place.shape.dim[0]);
  if (!is_a && source.init_lora_weights != "false") {
    std::fill_n(out, count, 0.f);
  } else if (is_a && source.init_lora_weights == "gaussian") {
    rng.fill_normal(out, uint64_t(begin), uint64_t(count));
    for (int64_t i = 0; i < count; ++i) out[i] = float(out[i] / rank);
  } else {
    rng.fill_uniform(out, uint64_t(begin), uint64_t(count));
    for (int64_t i = 0; i < count; ++i) out[i] = float((2.0 * out[i] - 1) / root);
  }
}

bool is_adapter(const std::string& name) { return ends_with(name, ".lora_A.weight") || ends_with(name, ".lora_B.weight"); }

void load_trainable(const PartPlace& place, const Loader& l, Range mine, float* values) {
  const Range own = intersect(place.element_range(), mine);
  if (!own.size()) return;
  const auto begin = int64_t(own.begin - place.begin), count = int64_t(own.size());
  float* const to = values + (own.begin - mine.begin);
  if (!is_adapter(place.name)) {
    base_values(Tensor{to, Dtype::f32, {count}, l.home}, place.name, begin, l);
  } else if (l.source.adapter) {
    read_piece(Tensor{to, Dtype::f32, {count}, l.home}, l.source.adapter->get("base_model.model." + place.name), begin);
  } else {
    init_adapter(to, place, begin, count, l.source);
  }
}

void load_dense(const PartPlace& place, const Loader& l, Range mine, std::byte* bytes) {
  const Range own = intersect(place.frozen_range(), mine);
  if (!own.size()) return;
  const size_t size = size_of(place.dtype);
  base_values(Tensor{bytes + (own.begin - mine.begin), place.dtype, {int64_t(own.size() / size)}, l.home}, place.name,
              int64_t((own.begin - place.begin) / size), l);
}

void copy_owned(const PartPlace& place, const void* whole, Range mine, std::byte* bytes) {
  const Range own = intersect(place.frozen_range(), mine);
  if (own.size())
    std::memcpy(bytes + (own.begin - mine.begin), static_cast<const std::byte*>(whole) + (own.begin - place.begin), own.size());
}

// Elements [begin, begin + count) of a matrix in compute dtype: where they lie in the file, or in the scratch.
Tensor values_to_encode(Loader& l, const std::string& name, int64_t begin, int64_t count) {
  const Dtype compute = l.model.options.compute;
  if (l.source.base && stored(l, name).dtype == compute)
    if (const Tensor there = stored(l, name).view(begin, count, l.home); !there.empty()) return there;
  if (l.scratch.empty()) l.scratch.resize(scratch_elements * size_of(compute));
  const Tensor x{l.scratch.data(), compute, {std::min(count, scratch_elements)}, l.home};
  base_values(x, name, begin, l);
  return x;
}

// Codes of the blocks this rank owns go to their place; their scales to `absmax`. Returns the range of those blocks.
Range encode_owned(Loader& l, const PartPlace& codes, const Codebook4& store, int64_t n, std::vector<float>& absmax, Range mine,
                   std::byte* bytes) {
  const Range own = intersect(codes.frozen_range(), mine);
  constexpr size_t block_bytes = block4 / 2;
  const Range blocks{(own.begin - std::min(own.begin, codes.begin)) / block_bytes,
                     own.size() ? (own.end - codes.begin + block_bytes - 1) / block_bytes : 0};
  if (!own.size()) return {0, 0};
  const int64_t end = std::min(n, int64_t(blocks.end) * block4);
  for (auto at = int64_t(blocks.begin) * block4; at < end;) {
    const Tensor x = values_to_encode(l, codes.name, at, std::min(piece_elements, end - at));
    const int64_t count = x.size();
    codebook4_encode(Tensor{bytes + (codes.begin + size_t(at) / 2 - mine.begin), Dtype::u8, {(count + 1) / 2}, l.home},
                     Tensor{absmax.data() + at / block4, Dtype::f32, {(count + block4 - 1) / block4}, l.home}, x, store.format->table,
                     block4);
    if (l.source.base) stored(l, codes.name).forget(at, count);
    at += count;
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

void load_codebook4(Loader& l, const UnitLayout& layout, const std::string& name, const Weight& w, Range mine, std::byte* bytes,
                    const Exchange& exchange) {
  const auto& store = std::get<Codebook4>(w.store);
  const int64_t n = w.out * w.in;
  if (const auto stored = l.source.base ? find_stored_codes(*l.source.base, name, w.out, w.in) : std::nullopt) {
    copy_stored(layout, name, *stored, mine, bytes);
    return;
  }
  std::vector<float> absmax(size_t((n + block4 - 1) / block4));
  exchange(absmax, encode_owned(l, layout.find(name), store, n, absmax, mine, bytes));
  if (!store.nested) {
    copy_owned(layout.find(name + ".absmax"), absmax.data(), mine, bytes);
    return;
  }
  const NestedAbsmax nested = encode_absmax(absmax, l.home);
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
  Loader l{m, source, home, {}};
  const UnitLayout& layout = m.units[size_t(unit)];
  for (const PartPlace& place : layout.parts) {
    if (place.trains) {
      load_trainable(place, l, trainable, values);
    } else if (!of_codebook(place)) {
      load_dense(place, l, frozen, frozen_bytes);
    }
  }
  if (unit == m.root_unit()) return;
  for_each_linear(m.layers[size_t(unit)], [&](Linear& linear) {
    if (std::holds_alternative<Codebook4>(linear.weight.store))
      load_codebook4(l, layout, str("model.layers.", unit, ".", linear.name, ".weight"), linear.weight, frozen, frozen_bytes, exchange);
  });
}

size_t load_scratch(const Model& m) {
  int64_t blocks = 0;  // of the largest quantized matrix
  for (const UnitLayout& unit : m.units)
    for (const PartPlace& p : unit.parts)
      if (p.dtype == Dtype::u8 && !ends_with(p.name, ".absmax")) blocks = std::max(blocks, 2 * p.shape.size() / block4);
  if (blocks == 0) return 0;
  // The scales, and the nested codes beside them; pieces of the matrix.
  return size_t(blocks) * (sizeof(float) + 1) + size_t(scratch_elements) * size_of(m.options.compute);
}

}  // namespace tessera
