#include "train/tensor_source.h"

#include <cassert>

#include "core/error.h"
#include "core/text.h"
#include "io/safetensors.h"

namespace tessera {
namespace {

size_t elements(const TensorSource& t) {
  size_t n = 1;
  for (const int64_t size : t.shape) n *= size_t(size);
  return n;
}

template <class From, class To>
void convert(const std::byte* from, std::byte* to, size_t count) {
  const auto* in = reinterpret_cast<const From*>(from);
  auto* out = reinterpret_cast<To*>(to);
  for (size_t i = 0; i < count; ++i) out[i] = To(float(in[i]));
}
template <class From>
void convert_from(const std::byte* from, Dtype dtype, std::byte* to, size_t count) {
  dispatch_float(dtype, [&]<class To>() { convert<From, To>(from, to, count); });
}

bool small_float(Dtype d) { return d == Dtype::f32 || d == Dtype::bf16 || d == Dtype::f16; }

}  // namespace

std::optional<Dtype> dtype_asked(const std::string& name) {
  assert(name.empty() || name == "fp32" || name == "bf16");
  if (name.empty()) return {};
  return name == "bf16" ? Dtype::bf16 : Dtype::f32;
}

Dtype converted_dtype(const TensorSource& t, std::optional<Dtype> wanted) {
  if (wanted && t.dtype == Dtype::f64)
    fail(t.name, "is F64", "F32, BF16 or F16, to be written in another dtype", "leave --dtype out: it is then written as it is");
  return wanted && small_float(t.dtype) ? *wanted : t.dtype;
}

size_t write_sources(const std::string& path, const std::vector<TensorSource>& sources, std::optional<Dtype> wanted,
                     const std::map<std::string, std::string>& metadata) {
  assert(!wanted || *wanted == Dtype::f32 || *wanted == Dtype::bf16);
  std::map<std::string, const TensorSource*> by_name;
  std::vector<TensorToWrite> tensors;
  for (const TensorSource& s : sources) {
    by_name[s.name] = &s;
    tensors.push_back({s.name, converted_dtype(s, wanted), s.shape, nullptr});
  }
  size_t total = 0;
  std::vector<std::byte> stored, converted;
  write_safetensors(path, tensors, metadata, [&](const TensorToWrite& t) -> std::span<const std::byte> {
    const TensorSource& from = *by_name.at(t.name);
    const size_t count = elements(from);
    stored.resize(count * size_of(from.dtype));
    from.read(stored);
    total += count * size_of(t.dtype);
    if (t.dtype == from.dtype) return stored;
    converted.resize(count * size_of(t.dtype));
    if (from.dtype == Dtype::f32)
      convert_from<float>(stored.data(), t.dtype, converted.data(), count);
    else if (from.dtype == Dtype::bf16)
      convert_from<Bf16>(stored.data(), t.dtype, converted.data(), count);
    else
      convert_from<F16>(stored.data(), t.dtype, converted.data(), count);
    return converted;
  });
  return total;
}

}  // namespace tessera
