// How a weight matrix is stored. A closed list: Dense (values) and Codebook4 (4-bit codes into a table of 16 values). Bits, block and
// table are fields of a format row, not types. The bytes a format needs are said in one place and used by allocation and sharding.
// Source of the 4-bit layout: bitsandbytes (reference in docs/formats.md).
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/tensor.h"

namespace tessera {

// A row of the format table.
struct Format {
  std::string_view name;         // "dense", "nf4"
  const float* table = nullptr;  // 16 values; null: Dense
  std::string_view bnb_type;     // "nf4": bitsandbytes' quant_type
};
const Format& find_format(std::string_view name);  // throws Error naming the allowed ones

constexpr int64_t block4 = 64;         // weights per absmax
constexpr int64_t nested_block = 256;  // absmax values per nested scale

const float* nf4_table();    // 16 f32 values, host memory
const float* dynamic_map();  // bitsandbytes' signed 8-bit dynamic map, 256 f32 values ascending, host memory

struct Dense {
  Param weight;  // (out, in)
};

// weight[i] = table[code i] * absmax[i / 64], i the flat row-major index. Without double quantization absmax holds the scales. With it
// absmax_codes (u8) holds codes into dynamic_map(): scale = f32(map[q] * nested_absmax[block / 256]) + nested_offset.
struct Codebook4 {
  const Format* format = nullptr;
  bool nested = false;
  Param codes;          // u8 (out*in/2), first element in the high nibble
  Param absmax;         // f32 (blocks), when not nested
  Param absmax_codes;   // u8 (blocks), when nested
  Param nested_absmax;  // f32 (ceil(blocks/256)), when nested
  Param nested_offset;  // f32 (1), when nested
};

// A matrix in one of the formats. out = rows, in = columns.
struct Weight {
  std::variant<Dense, Codebook4> store;
  int64_t out = 0, in = 0;
};

// An empty weight with all shapes set, data null. dense_dtype: of Dense values (the compute dtype).
Weight make_weight(const Format&, bool double_quant, int64_t out, int64_t in, Dtype dense_dtype, bool trains);

// Calls v(suffix, Param&) for every stored array in file order: "" for Dense; "", ".absmax", ".nested_absmax", ".nested_offset" for
// Codebook4 (suffix follows NAME.weight).
template <class V>
void parts(Weight& w, V&& v) {
  if (auto* dense = std::get_if<Dense>(&w.store)) {
    v("", dense->weight);
  } else {
    auto& c = std::get<Codebook4>(w.store);
    v("", c.codes);
    v(".absmax", c.nested ? c.absmax_codes : c.absmax);
    if (c.nested) v(".nested_absmax", c.nested_absmax), v(".nested_offset", c.nested_offset);
  }
}

}  // namespace tessera
