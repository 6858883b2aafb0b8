// The safetensors format: 8 bytes header length (little-endian), JSON header, raw tensor bytes. Source: huggingface/safetensors, README.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"

namespace tessera {

// One tensor of a checkpoint: a view of mapped bytes (which need not be aligned to the element size) with its exact shape.
struct StoredTensor {
  std::string name;
  std::string dtype_name;    // as written: "BF16", "I8", ...
  Dtype dtype = Dtype::f32;  // REQUIRES known: readers refuse dtypes that are not ours when they use the tensor
  bool known_dtype = true;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  const MappedFile* file = nullptr;
  int64_t size() const;
};

// All tensors of a model folder or of one file, by name. Every offset, size, overlap and duplicate is checked when it is opened;
// errors name the file and the tensor. Owns the mappings.
class TensorFiles {
 public:
  // `path`: a .safetensors file, or a folder with model.safetensors, or with model.safetensors.index.json and its shards.
  static TensorFiles open(const std::string& path);
  const StoredTensor* find(const std::string& name) const;  // nullptr when there is none
  const StoredTensor& get(const std::string& name) const;   // throws Error naming the tensor and the nearest name
  const std::map<std::string, StoredTensor>& all() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }
  const std::vector<std::string>& files() const { return file_names_; }

 private:
  std::string path_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<std::string> file_names_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Elements [begin, begin + count) of a stored F32, F16 or BF16 tensor, converted (nearest even) to out's dtype (f32 or bf16).
void read_elements(Tensor out, const StoredTensor& from, int64_t begin, int64_t count);

struct TensorToWrite {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  const void* data;  // host memory, row-major
};
// One file, tensors in name order as Hugging Face writes them, header padded to 8 bytes. Written beside and renamed, then opened again
// and compared (names, shapes, SHA-256 of the data); throws Error when anything differs.
void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace tessera
