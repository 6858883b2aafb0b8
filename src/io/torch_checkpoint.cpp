#include "io/torch_checkpoint.h"

#include <cassert>
#include <cstring>
#include <map>

#include "core/error.h"
#include "core/text.h"
#include "io/safetensors.h"
#include "io/torch_metadata.h"

namespace tessera {
namespace {

constexpr const char* metadata_name = ".metadata";

// The one tensor of a chunk's stream, which must be the box that .metadata says.
SavedTensor open_box(const MappedFile& file, const CutTensor& t, const StoredBox& box) {
  const std::string where = str(file.path(), ": ", t.key), remedy = "copy the whole checkpoint folder again, or save it again";
  if (size_t(box.begin) > file.size() || size_t(box.length) > file.size() - size_t(box.begin))
    fail(where, str("bytes ", box.begin, " to ", box.begin, " + ", box.length, " of a file of ", file.size(), " bytes"),
         "the bytes that .metadata names", remedy);
  std::vector<SavedTensor> saved = read_torch_save({file.data() + box.begin, size_t(box.length)}, where);
  if (saved.size() != 1 || !saved[0].path.empty()) fail(where, str("a chunk of ", saved.size(), " tensors in dicts"), "one tensor", remedy);
  if (saved[0].dtype != t.dtype || saved[0].shape != box.sizes)
    fail(where, str(torch_name(saved[0].dtype), " of shape ", shape_text(saved[0].shape)),
         str(torch_name(t.dtype), " of shape ", shape_text(box.sizes), ", as .metadata says"), remedy);
  return std::move(saved[0]);
}

// Copies a row-major box into its place in a row-major tensor, row by row (the last dimension). `to` and `from` stand at dimension d's
// begin.
const std::byte* copy_box(const TorchPiece& piece, const std::vector<size_t>& stride, size_t d, std::byte* to, const std::byte* from) {
  const size_t last = piece.sizes.size() - 1;
  to += size_t(piece.offsets[d]) * stride[d];
  if (d == last) {
    const size_t bytes = size_t(piece.sizes[d]) * stride[d];
    std::memcpy(to, from, bytes);
    return from + bytes;
  }
  for (int64_t i = 0; i < piece.sizes[d]; ++i) from = copy_box(piece, stride, d + 1, to + size_t(i) * stride[d], from);
  return from;
}

}  // namespace

std::string TorchTensor::name() const { return join(path, "."); }

bool TorchCheckpoint::present(const std::string& path) {
  if (folder_exists(path)) return file_exists(str(path, "/", metadata_name));
  return file_exists(path) && (ends_with(path, ".bin") || ends_with(path, ".pt") || ends_with(path, ".pth"));
}

TorchCheckpoint TorchCheckpoint::open(const std::string& path) {
  TorchCheckpoint out;
  out.path_ = path;
  if (folder_exists(path)) {
    out.open_folder();
  } else {
    out.open_file();
  }
  return out;
}

void TorchCheckpoint::open_folder() {
  std::map<std::string, size_t> opened;
  for (const CutTensor& t : read_torch_metadata(str(path_, "/", metadata_name))) {
    TorchTensor tensor{t.path, t.dtype, t.shape, {}};
    for (const StoredBox& box : t.boxes) {
      const auto [place, is_new] = opened.insert({box.file, files_.size()});
      if (is_new) files_.push_back(std::make_unique<MappedFile>(str(path_, "/", box.file)));
      tensor.pieces.push_back({box.offsets, box.sizes, open_box(*files_[place->second], t, box), place->second});
    }
    for (const auto& file : files_) file->drop(0, file->size());
    tensors_.push_back(std::move(tensor));
  }
}

void TorchCheckpoint::open_file() {
  files_.push_back(std::make_unique<MappedFile>(path_));
  for (SavedTensor& saved : read_torch_save({files_[0]->data(), files_[0]->size()}, path_)) {
    TorchTensor tensor{saved.path, saved.dtype, saved.shape, {}};
    if (!saved.bytes.empty()) {
      const std::vector<int64_t> sizes = saved.shape;
      tensor.pieces.push_back({std::vector<int64_t>(sizes.size(), 0), sizes, std::move(saved), 0});
    }
    tensors_.push_back(std::move(tensor));
  }
}

void TorchCheckpoint::read(const TorchTensor& t, std::span<std::byte> out) {
  std::vector<size_t> stride(t.shape.size(), size_of(t.dtype));
  for (size_t d = stride.size(); d-- > 1;) stride[d - 1] = stride[d] * size_t(t.shape[d]);
  assert(out.size() == (stride.empty() ? size_of(t.dtype) : stride[0] * size_t(t.shape[0])));
  for (const TorchPiece& piece : t.pieces) {
    const MappedFile& file = *files_[piece.file];
    if (checked_.insert(piece.saved.storage.data()).second) check_storage(piece.saved, str(file.path(), ": ", t.name()));
    if (t.shape.empty()) {
      std::memcpy(out.data(), piece.saved.bytes.data(), piece.saved.bytes.size());
    } else {
      copy_box(piece, stride, 0, out.data(), piece.saved.bytes.data());
    }
    file.drop(0, file.size());
  }
}

}  // namespace tessera
