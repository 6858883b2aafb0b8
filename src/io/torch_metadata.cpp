#include "io/torch_metadata.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "io/pickle.h"
#include "io/safetensors.h"
#include "io/torch_save.h"

namespace tessera {
namespace {

using Kind = PickleValue::Kind;

constexpr const char* remedy = "copy the whole checkpoint folder again, or save it again";

constexpr size_t max_keys = 8;  // of the nested state dict that lead to a tensor

constexpr std::string_view metadata_class = "torch.distributed.checkpoint.metadata.Metadata";
constexpr std::string_view tensor_class = "torch.distributed.checkpoint.metadata.TensorStorageMetadata";
constexpr std::string_view bytes_class = "torch.distributed.checkpoint.metadata.BytesStorageMetadata";
constexpr std::string_view properties_class = "torch.distributed.checkpoint.metadata.TensorProperties";
// Where older versions of torch had the class.
constexpr std::string_view old_properties_class = "torch.distributed._shard.sharded_tensor.metadata.TensorProperties";
constexpr std::string_view chunk_class = "torch.distributed.checkpoint.metadata.ChunkStorageMetadata";
constexpr std::string_view index_class = "torch.distributed.checkpoint.metadata.MetadataIndex";
constexpr std::string_view place_class = "torch.distributed.checkpoint.filesystem._StorageInfo";
constexpr std::string_view size_class = "torch.Size";
constexpr std::string_view layout_function = "torch.serialization._get_layout";
constexpr std::array<std::string_view, 25> allowed_names{metadata_class,
                                                         tensor_class,
                                                         bytes_class,
                                                         properties_class,
                                                         old_properties_class,
                                                         "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
                                                         chunk_class,
                                                         index_class,
                                                         place_class,
                                                         size_class,
                                                         layout_function,
                                                         "torch.distributed.checkpoint.metadata.StorageMeta",
                                                         "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
                                                         "collections.OrderedDict",
                                                         "pathlib.PosixPath",
                                                         "pathlib._local.PosixPath",
                                                         "pathlib.Path",
                                                         "torch.float32",
                                                         "torch.bfloat16",
                                                         "torch.float16",
                                                         "torch.float64",
                                                         "torch.uint8",
                                                         "torch.int32",
                                                         "torch.int64",
                                                         "torch.bool"};

using Offsets = std::vector<int64_t>;

struct Place {
  std::string file;
  int64_t begin = 0, length = 0;
};

class Metadata {
 public:
  explicit Metadata(const std::string& path) : path_(path), file_(path), pickle_({file_.data(), file_.size()}, path_, allowed_names) {}

  std::vector<CutTensor> tensors() {
    const PickleValue& root = expect_object(pickle_.root(), metadata_class, "the metadata", path_);
    read_places(get(root, "storage_data", path_));
    const PickleValue& all = expect(get(root, "state_dict_metadata", path_), Kind::dict, "state_dict_metadata", path_);
    const auto paths = state_paths(find(root, "planner_data"));
    std::vector<CutTensor> out;
    for (size_t i = 0; i < all.items.size(); i += 2) {
      const std::string& key = expect(*all.items[i], Kind::text, "a tensor's name", path_).text;
      const PickleValue& entry = expect(*all.items[i + 1], Kind::object, key, path_);
      if (entry.text == bytes_class) continue;
      out.push_back(tensor(key, entry));
      const auto named = paths.find(key);
      out.back().path = named == paths.end() ? std::vector<std::string>{key} : named->second;
    }
    return out;
  }

 private:
  Offsets size(const PickleValue& value, const std::string& what) const {
    const PickleValue& object = expect_object(value, size_class, what, path_);
    if (object.items.size() != 1) fail(path_, str(what, " is a torch.Size of ", object.items.size(), " parts"), "one tuple", remedy);
    return whole_numbers(*object.items[0], what, path_);
  }
  const std::string& text(const PickleValue& of, std::string_view key) const {
    return expect(get(of, key, path_), Kind::text, std::string(key), path_).text;
  }
  int64_t from_zero(const PickleValue& of, std::string_view key) const {
    const int64_t value = expect(get(of, key, path_), Kind::integer, std::string(key), path_).integer;
    if (value < 0) fail(path_, str(key, " is ", value), "a number from 0", remedy);
    return value;
  }

  // storage_data: MetadataIndex(fqn, offset) to _StorageInfo(relative_path, offset, length).
  void read_places(const PickleValue& all) {
    expect(all, Kind::dict, "storage_data", path_);
    for (size_t i = 0; i < all.items.size(); i += 2) {
      const PickleValue& index = expect_object(*all.items[i], index_class, "a key of storage_data", path_);
      const PickleValue& place = expect_object(*all.items[i + 1], place_class, "a place of storage_data", path_);
      const PickleValue* offset = find(index, "offset");
      if (!offset || offset->kind == Kind::none) continue;  // no tensor
      const std::string& key = text(index, "fqn");
      Place p{text(place, "relative_path"), from_zero(place, "offset"), from_zero(place, "length")};
      if (p.file.empty() || p.file == "." || p.file == ".." || p.file.find_first_of(std::string_view("/\0", 2)) != std::string::npos)
        fail(path_, str(key, " lies in ", p.file), "the name of a file in the checkpoint's own folder", remedy);
      if (const PickleValue* made = find(place, "transform_descriptors"); made && made->kind != Kind::none && !made->items.empty())
        fail(path_, str(key, " was transformed when it was written (compressed)"), "chunks as torch.save writes them",
             "save the checkpoint without StreamTransformExtension");
      if (!places_.insert({{key, size(*offset, key)}, std::move(p)}).second)
        fail(path_, str(key, ": one chunk twice"), "each chunk once", remedy);
    }
  }

  // planner_data: the key to the tuple of keys of the nested state dict. A tuple may also hold numbers, for lists.
  std::map<std::string, std::vector<std::string>> state_paths(const PickleValue* all) const {
    std::map<std::string, std::vector<std::string>> out;
    if (!all || all->kind != Kind::dict) return out;
    for (size_t i = 0; i < all->items.size(); i += 2) {
      std::vector<std::string>& path = out[expect(*all->items[i], Kind::text, "a key of planner_data", path_).text];
      const auto& parts = expect(*all->items[i + 1], Kind::tuple, "a path of planner_data", path_).items;
      if (parts.empty() || parts.size() > max_keys) fail(path_, str("a path of ", parts.size(), " keys"), str("1 to ", max_keys), remedy);
      for (const PickleValue* part : parts)
        path.push_back(part->kind == Kind::integer ? str(part->integer) : expect(*part, Kind::text, "a path of planner_data", path_).text);
    }
    return out;
  }

  // TensorProperties keeps (dtype, layout, requires_grad, memory format, pin_memory).
  Dtype dtype(const PickleValue& entry, const std::string& key) const {
    const PickleValue& properties = get(entry, "properties", path_);
    if (properties.text != old_properties_class) expect_object(properties, properties_class, key, path_);
    if (!properties.state || properties.state->kind != Kind::tuple || properties.state->items.size() < 2)
      fail(path_, str(key, " has no properties"), "dtype and layout", remedy);
    const PickleValue &type = *properties.state->items[0], &layout = *properties.state->items[1];
    if (expect_object(layout, layout_function, key, path_).items.size() != 1 || layout.items[0]->text != "torch.strided")
      fail(path_, str(key, " is no dense tensor"), "torch.strided", "save it as a dense tensor");
    const std::string& name = expect(type, Kind::global, key, path_).text;
    return torch_dtype(name.substr(name.find('.') + 1), str(path_, ": ", key));
  }

  CutTensor tensor(const std::string& key, const PickleValue& entry) const {
    expect_object(entry, tensor_class, key, path_);
    CutTensor t{key, {}, dtype(entry, key), size(get(entry, "size", path_), key), {}};
    checked_bytes(t.shape, t.dtype, str(path_, ": ", key));
    for (const PickleValue* item : expect(get(entry, "chunks", path_), Kind::list, key, path_).items) {
      const PickleValue& chunk = expect_object(*item, chunk_class, key, path_);
      StoredBox box{size(get(chunk, "offsets", path_), key), size(get(chunk, "sizes", path_), key), "", 0, 0};
      check_inside(t, box);
      if (std::find(box.sizes.begin(), box.sizes.end(), 0) != box.sizes.end()) continue;
      const auto place = places_.find({key, box.offsets});
      if (place == places_.end())
        fail(path_, str(key, ": no file has the chunk at ", shape_text(box.offsets)), "a place for every chunk", remedy);
      box.file = place->second.file, box.begin = place->second.begin, box.length = place->second.length;
      t.boxes.push_back(std::move(box));
    }
    check_cover(t);
    return t;
  }

  void check_inside(const CutTensor& t, const StoredBox& box) const {
    bool inside = box.offsets.size() == t.shape.size() && box.sizes.size() == t.shape.size();
    for (size_t d = 0; inside && d < t.shape.size(); ++d)
      inside = box.offsets[d] <= t.shape[d] && box.sizes[d] <= t.shape[d] - box.offsets[d];
    if (!inside)
      fail(path_, str(t.key, ": a chunk of ", shape_text(box.sizes), " at ", shape_text(box.offsets)), "inside " + shape_text(t.shape),
           remedy);
  }

  // Boxes that do not overlap and have as many elements as the tensor cover it. Sorted by the first dimension, a box is compared with those
  // that begin before it ends.
  void check_cover(CutTensor& t) const {
    std::sort(t.boxes.begin(), t.boxes.end(), [](const StoredBox& a, const StoredBox& b) { return a.offsets < b.offsets; });
    int64_t elements = 0;
    for (size_t i = 0; i < t.boxes.size(); ++i) {
      const StoredBox& a = t.boxes[i];
      elements += count(a.sizes);
      for (size_t k = i + 1; k < t.boxes.size() && (t.shape.empty() || t.boxes[k].offsets[0] < a.offsets[0] + a.sizes[0]); ++k)
        if (overlap(a, t.boxes[k]))
          fail(path_, str(t.key, ": the chunks at ", shape_text(a.offsets), " and ", shape_text(t.boxes[k].offsets), " overlap"),
               "each element in one chunk", remedy);
    }
    if (elements != count(t.shape))
      fail(path_, str(t.key, ": its chunks have ", elements, " elements"), str(count(t.shape), ", as ", shape_text(t.shape), " has"),
           remedy);
  }
  static int64_t count(const Offsets& sizes) {
    int64_t n = 1;
    for (const int64_t s : sizes) n *= s;
    return n;
  }
  static bool overlap(const StoredBox& a, const StoredBox& b) {
    for (size_t d = 0; d < a.sizes.size(); ++d)
      if (a.offsets[d] + a.sizes[d] <= b.offsets[d] || b.offsets[d] + b.sizes[d] <= a.offsets[d]) return false;
    return true;
  }

  const std::string path_;
  MappedFile file_;
  Pickle pickle_;
  std::map<std::pair<std::string, Offsets>, Place> places_;
};

}  // namespace

std::vector<CutTensor> read_torch_metadata(const std::string& path) { return Metadata(path).tensors(); }

}  // namespace tessera
