#include "core/dtype.h"

#include <array>

namespace tessera {
namespace {
struct Row {
  size_t bytes;
  std::string_view name, torch;
};
constexpr std::array<Row, 7> rows{{{4, "F32", "float32"},
                                   {2, "BF16", "bfloat16"},
                                   {2, "F16", "float16"},
                                   {8, "F64", "float64"},
                                   {1, "U8", "uint8"},
                                   {4, "I32", "int32"},
                                   {8, "I64", "int64"}}};
}  // namespace

size_t size_of(Dtype d) { return rows[size_t(d)].bytes; }
std::string_view name_of(Dtype d) { return rows[size_t(d)].name; }
std::string_view torch_name(Dtype d) { return rows[size_t(d)].torch; }

// Integers instead of _Float16, which not every compiler has. Below 2^-14 a sum with 0.5 rounds to the last bit of the subnormals; above
// it half of the last bit is added, and the tie's bit.
F16::F16(float value) {
  const uint32_t all = std::bit_cast<uint32_t>(value), sign = all >> 16 & 0x8000u, size = all & 0x7fffffffu;
  uint32_t half = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
  if (size < 0x38800000u) half = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000u;
  if (size >= 0x47800000u) half = 0x7c00u;
  if (size > 0x7f800000u) half = 0x7e00u | (size >> 13 & 0x3ffu);
  bits = uint16_t(sign | half);
}
// Source: F. Giesen, "half_to_float_fast4", 2012. What is 2^16 or more after the scaling was infinity or NaN, which is made quiet.
F16::operator float() const {
  const float scaled = std::bit_cast<float>((bits & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t nan = (bits & 0x7fffu) > 0x7c00u ? 0x7fc00000u : 0u, special = scaled >= 65536.0f ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special | nan | (bits & 0x8000u) << 16);
}

}  // namespace tessera
