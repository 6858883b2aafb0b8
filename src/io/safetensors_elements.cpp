#include <cassert>
#include <cstring>

#include "core/error.h"
#include "io/safetensors.h"

namespace tessera {
namespace {

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);  // any alignment
  return value;
}

// What lies in a file, as float. Branch-free, so that the loop below becomes vector code on every CPU.
struct StoredF32 {
  static constexpr size_t bytes = 4;
  static float read(const std::byte* at) { return load<float>(at); }
};
struct StoredBf16 {
  static constexpr size_t bytes = 2;
  static float read(const std::byte* at) { return std::bit_cast<float>(uint32_t(load<uint16_t>(at)) << 16); }
};
// The exponent is rebiased by a multiplication, exact also for subnormals; what is then 2^16 or more was infinity or NaN.
// Source: F. Giesen, "half_to_float_fast4", 2012.
struct StoredF16 {
  static constexpr size_t bytes = 2;
  static float read(const std::byte* at) {
    const uint32_t half = load<uint16_t>(at);
    const float scaled = std::bit_cast<float>((half & 0x7fffu) << 13) * 0x1p112f;
    const uint32_t special = scaled >= 65536.0f ? 0x7f800000u : 0u;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special | (half & 0x8000u) << 16);
  }
};

template <class Stored, class T>
void convert(T* out, const std::byte* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = T(Stored::read(from + size_t(i) * Stored::bytes));
}

template <class Stored>
void convert_to(Tensor out, const StoredTensor& from, int64_t begin, int64_t count) {
  const std::byte* source = from.data + size_t(begin) * Stored::bytes;
  dispatch_float(out.dtype, [&]<class T>() { convert<Stored>(out.as<T>(), source, count); });
}

}  // namespace

void read_elements(Tensor out, const StoredTensor& from, int64_t begin, int64_t count) {
  assert(out.dtype == Dtype::f32 || out.dtype == Dtype::bf16);
  assert(out.size() == count && begin >= 0 && count >= 0 && begin + count <= from.size());
  const bool floating = from.known_dtype && (from.dtype == Dtype::f32 || from.dtype == Dtype::f16 || from.dtype == Dtype::bf16);
  if (!floating) fail(from.where(), "dtype " + from.dtype_name, "F32, F16 or BF16", "convert the weights to one of these dtypes");
  if (!count) return;
  if (from.dtype == out.dtype) {
    const size_t size = size_of(out.dtype);
    std::memcpy(out.data, from.data + size_t(begin) * size, size_t(count) * size);
  } else if (from.dtype == Dtype::f32) {
    convert_to<StoredF32>(out, from, begin, count);
  } else if (from.dtype == Dtype::bf16) {
    convert_to<StoredBf16>(out, from, begin, count);
  } else {
    convert_to<StoredF16>(out, from, begin, count);
  }
}

}  // namespace tessera
