// A stream that torch.save has written: a zip archive with data.pkl, which says what there is, and data/0, data/1, ..., the bytes. Read
// without PyTorch and without running anything (io/pickle.h). Source: torch 2.12, serialization.py, _utils.py.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace tessera {

// A tensor in row-major order. A parameter, or a tensor of a subclass, is the tensor it holds.
struct SavedTensor {
  std::vector<std::string> path;  // keys of the nested dicts that lead to it; empty when the stream is one tensor
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;    // its own, in the stream
  std::span<const std::byte> storage;  // what the check sum is of; holds `bytes`
  uint32_t crc32 = 0;
};

// Every tensor of the stream, in its order: the value is a tensor, or dicts (of dicts ...) with tensors; what else stands in a dict is left
// out. Throws Error naming `where` for what is damaged, has another byte order, is not row-major or of a dtype that is not ours.
std::vector<SavedTensor> read_torch_save(std::span<const std::byte> stream, const std::string& where);

// Throws Error naming `where` when the storage's bytes have another check sum than was written.
void check_storage(const SavedTensor&, const std::string& where);

// A dtype by its name in torch ("float32"); Error when it is none of ours.
Dtype torch_dtype(const std::string& name, const std::string& where);
// Bytes of a tensor, overflow-checked.
size_t checked_bytes(const std::vector<int64_t>& shape, Dtype, const std::string& where);

}  // namespace tessera
