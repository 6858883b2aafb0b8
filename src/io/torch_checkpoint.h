// Checkpoints of PyTorch: a folder of torch.distributed.checkpoint (.metadata and *.distcp, each rank's chunks of every tensor, one
// torch.save stream behind the other), or one file of torch.save. Tensors are put together one at a time. Source: torch 2.12,
// distributed/checkpoint/metadata.py, filesystem.py. Nothing in the files is run: io/pickle.h.
#pragma once
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/torch_save.h"

namespace tessera {

// A box of a tensor and the stream's tensor that fills it.
struct TorchPiece {
  std::vector<int64_t> offsets, sizes;
  SavedTensor saved;
  size_t file = 0;
};

struct TorchTensor {
  std::vector<std::string> path;  // keys of the state dict that lead to it: {"model", "lm_head.weight"}
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  std::vector<TorchPiece> pieces;  // every element is in exactly one
  std::string name() const;        // the path joined by "."
};

// Owns the mappings. Every piece's place, dtype and shape is checked when it is opened, so that what is missing or cut off is known before
// anything is written; the check sums of the values are checked when they are read.
class TorchCheckpoint {
 public:
  // The folder has .metadata, or the file ends in .bin, .pt or .pth.
  static bool present(const std::string& path);
  static TorchCheckpoint open(const std::string& path);
  const std::vector<TorchTensor>& tensors() const { return tensors_; }
  // The whole tensor, row-major. REQUIRES: of this checkpoint; out.size() = its bytes. The pages read are given back.
  void read(const TorchTensor&, std::span<std::byte> out);
  const std::string& path() const { return path_; }

 private:
  void open_folder();
  void open_file();

  std::string path_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<TorchTensor> tensors_;
  std::set<const std::byte*> checked_;  // storages whose check sum was right
};

}  // namespace tessera
