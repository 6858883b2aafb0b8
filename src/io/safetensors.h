// The safetensors format: 8 bytes header length (little-endian), JSON header, raw tensor bytes. Source: huggingface/safetensors, README.
//   {"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},...}   offsets from the header's end
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
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
  const std::byte* data = nullptr;  // little-endian, row-major
  size_t bytes = 0;
  const MappedFile* file = nullptr;
  int64_t size() const;            // number of elements
  std::string where() const;       // "path/model.safetensors: name", for messages
  std::string shape_text() const;  // "[8, 7]"
  // Elements [begin, begin + count) where they lie in the mapped file; empty unless the dtype is known and they are aligned to it.
  Tensor view(int64_t begin, int64_t count, Backend* home) const;
  // These elements need not stay in this process's memory; they are read again when touched.
  void forget(int64_t begin, int64_t count) const;
};
std::string shape_text(const std::vector<int64_t>& shape);  // "[8, 7]"

// All tensors of a model folder or of one file, by name. Every offset, size, overlap and duplicate is checked when it is opened;
// errors name the file and the tensor. An index must agree with its shards: every tensor in the shard it names, in no other, none left
// over. Owns the mappings; StoredTensors live as long as it does, also when it is moved.
class TensorFiles {
 public:
  // `path`: a .safetensors file, or a folder with model.safetensors, or with model.safetensors.index.json and its shards.
  static TensorFiles open(const std::string& path);
  const StoredTensor* find(const std::string& name) const;  // nullptr when there is none
  const StoredTensor& get(const std::string& name) const;   // throws Error naming the tensor and the nearest name
  const std::map<std::string, StoredTensor>& all() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }
  void forget_pages() const;  // bytes read so far need not stay in this process's memory; they are read again when touched
  const std::vector<std::string>& files() const { return file_names_; }

 private:
  void add_file(const std::string& path);
  void add_shards(const std::string& index_path);

  std::string path_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<std::string> file_names_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Elements [begin, begin + count) of a stored F32, F16 or BF16 tensor, converted (nearest even) to out's dtype (f32 or bf16).
// Throws Error for other stored dtypes. REQUIRES: out in host memory with count elements; the range inside the tensor.
void read_elements(Tensor out, const StoredTensor& from, int64_t begin, int64_t count);

struct TensorToWrite {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  const void* data;  // host memory, row-major
};
// One file, byte for byte as Hugging Face's library writes it: compact JSON header, __metadata__ first, tensors by element size (largest
// first) and then by name, header padded with spaces to 8 bytes, data without gaps. Written beside and renamed, after it was read back and
// compared (names, dtypes, shapes, SHA-256 of the data); throws Error when anything differs, and the old file stays.
void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata);

// The same for tensors that are not all in memory at once: `bytes_of` is called once per tensor, in the order of the file, and what it
// returns is written before the next call. TensorToWrite::data is not used.
using BytesOf = std::function<std::span<const std::byte>(const TensorToWrite&)>;
void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata, const BytesOf& bytes_of);

}  // namespace tessera
