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

F16::F16(float value) { bits = std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }
F16::operator float() const { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

}  // namespace tessera
