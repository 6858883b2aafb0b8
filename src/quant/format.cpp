#include "quant/format.h"

#include <array>
#include <cassert>

#include "core/error.h"
#include "core/text.h"

namespace tessera {

namespace {

const std::array<Format, 2>& formats() {
  static const std::array<Format, 2> rows = {{
      {"dense", nullptr, ""},
      {"nf4", nf4_table(), "nf4"},
  }};
  return rows;
}

// Known by name, refused until they have a row.
bool is_planned(std::string_view name) {
  return name == "fp4" || name == "int8" || starts_with(name, "affine") || starts_with(name, "hqq");
}

Param param(Dtype dtype, int64_t size) {
  Param p;
  p.value.dtype = dtype;
  p.value.shape = {size};
  return p;
}

int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

}  // namespace

const Format& find_format(std::string_view name) {
  std::vector<std::string> allowed;
  for (const Format& row : formats()) {
    if (row.name == name) return row;
    allowed.emplace_back(row.name);
  }
  const std::string given(name), near = nearest(given, allowed);
  fail("weight format", is_planned(name) ? str('"', given, "\" is not supported yet") : str('"', given, "\" is not a weight format"),
       join(allowed, ", "), near.empty() ? "name one of these" : str("did you mean ", near, "?"));
}

Weight make_weight(const Format& format, bool double_quant, int64_t out, int64_t in, Dtype dense_dtype, bool trains) {
  Weight w;
  w.out = out;
  w.in = in;
  if (!format.table) {
    Dense dense;
    dense.weight.value.dtype = dense_dtype;
    dense.weight.value.shape = {out, in};
    dense.weight.grad.shape = {out, in};
    dense.weight.trains = trains;
    w.store = dense;
    return w;
  }
  assert(!trains && "codes have no gradient");
  const int64_t blocks = pieces(out * in, block4);
  Codebook4 c;
  c.format = &format;
  c.nested = double_quant;
  c.codes = param(Dtype::u8, pieces(out * in, 2));
  if (double_quant) {
    c.absmax_codes = param(Dtype::u8, blocks);
    c.nested_absmax = param(Dtype::f32, pieces(blocks, nested_block));
    c.nested_offset = param(Dtype::f32, 1);
  } else {
    c.absmax = param(Dtype::f32, blocks);
  }
  w.store = c;
  return w;
}

}  // namespace tessera
