// Element types. bf16 and f16 are storage types: arithmetic on them happens in float.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace tessera {

enum class Dtype : uint8_t { f32, bf16, f16, f64, u8, i32, i64 };

size_t size_of(Dtype);               // bytes of one element
std::string_view name_of(Dtype);     // safetensors spelling: "F32", "BF16", "F16", "F64", "U8", "I32", "I64"
std::string_view torch_name(Dtype);  // "float32", "bfloat16", ...

// The upper half of a float. From float: round to nearest even; NaN stays NaN (made quiet).
struct Bf16 {
  uint16_t bits = 0;
  Bf16() = default;
  Bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? uint16_t(u >> 16 | 0x40) : uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

// IEEE binary16. From float: round to nearest even, overflow to infinity.
struct F16 {
  uint16_t bits = 0;
  F16() = default;
  F16(float value);
  operator float() const;
};

// Calls f.operator()<T>() with the element type of a floating dtype the kernels compute in (f32 or bf16).
template <class F>
decltype(auto) dispatch_float(Dtype dtype, F&& f) {
  if (dtype == Dtype::bf16) return f.template operator()<Bf16>();
  return f.template operator()<float>();
}

}  // namespace tessera
