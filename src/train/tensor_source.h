// Tensors that are made one at a time while a file is written, so that memory holds the largest of them and not all.
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace tessera {

struct TensorSource {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  std::function<void(std::span<std::byte>)> read;  // fills all its elements, row-major, in `dtype`
};

// fp32, bf16, or "": none asked for. REQUIRES: one of these.
std::optional<Dtype> dtype_asked(const std::string& name);
// The dtype a tensor has when `wanted` is asked for: F32, BF16 and F16 become it, whole numbers stay; Error for F64.
Dtype converted_dtype(const TensorSource&, std::optional<Dtype> wanted);

// One safetensors file, verified (io/safetensors.h). Returns the bytes of all its tensors.
size_t write_sources(const std::string& path, const std::vector<TensorSource>&, std::optional<Dtype> wanted,
                     const std::map<std::string, std::string>& metadata);

}  // namespace tessera
