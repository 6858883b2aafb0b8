// The .metadata file of a torch.distributed.checkpoint folder: which boxes a tensor was cut into, and where each lies.
// Source: torch 2.12, distributed/checkpoint/metadata.py (Metadata, TensorStorageMetadata, MetadataIndex), filesystem.py (_StorageInfo).
#pragma once
#include <string>
#include <vector>

#include "core/dtype.h"

namespace tessera {

struct StoredBox {
  std::vector<int64_t> offsets, sizes;
  std::string file;               // a name in the folder, checked to be no path
  int64_t begin = 0, length = 0;  // of its stream in that file
};

struct CutTensor {
  std::string key;                // "model.lm_head.weight"
  std::vector<std::string> path;  // {"model", "lm_head.weight"}; {key} when the file does not say
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  std::vector<StoredBox> boxes;  // not empty ones; together every element exactly once
};

// Tensors only; other values (an optimizer's settings) are left out. Throws Error naming the file.
std::vector<CutTensor> read_torch_metadata(const std::string& path);

}  // namespace tessera
