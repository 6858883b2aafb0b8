#include "io/torch_save.h"

#include <array>
#include <map>
#include <optional>
#include <string_view>

#include "core/error.h"
#include "core/text.h"
#include "io/pickle.h"
#include "io/safetensors.h"
#include "io/stored_zip.h"

namespace tessera {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t max_dimensions = 8;
constexpr size_t max_nesting = 8;  // of dicts
constexpr size_t max_visits = 1u << 20;
constexpr const char* remedy = "give a file that PyTorch has written, and copy it again if it is damaged";

constexpr std::string_view rebuild = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view rebuild_parameter = "torch._utils._rebuild_parameter";
constexpr std::string_view rebuild_type = "torch._tensor._rebuild_from_type_v2";

struct StorageClass {
  std::string_view name;
  Dtype dtype;
};
constexpr std::array<StorageClass, 7> storage_classes{{{"torch.FloatStorage", Dtype::f32},
                                                       {"torch.BFloat16Storage", Dtype::bf16},
                                                       {"torch.HalfStorage", Dtype::f16},
                                                       {"torch.DoubleStorage", Dtype::f64},
                                                       {"torch.ByteStorage", Dtype::u8},
                                                       {"torch.IntStorage", Dtype::i32},
                                                       {"torch.LongStorage", Dtype::i64}}};
constexpr std::array<std::string_view, 13> allowed_names{rebuild,
                                                         rebuild_parameter,
                                                         rebuild_type,
                                                         "torch.Tensor",
                                                         "torch.nn.parameter.Parameter",
                                                         "collections.OrderedDict",
                                                         storage_classes[0].name,
                                                         storage_classes[1].name,
                                                         storage_classes[2].name,
                                                         storage_classes[3].name,
                                                         storage_classes[4].name,
                                                         storage_classes[5].name,
                                                         storage_classes[6].name};

class Stream {
 public:
  Stream(std::span<const std::byte> bytes, const std::string& where)
      : where_(where), members_(read_stored_zip(bytes, where)), folder_(find_folder()) {
    if (const ZipMember* order = member("byteorder")) {
      const std::string_view text(reinterpret_cast<const char*>(order->bytes.data()), order->bytes.size());
      if (text != "little") fail(where_, "numbers of another byte order", "little", "save it on a little-endian machine");
    }
  }

  std::vector<SavedTensor> tensors() {
    const ZipMember& program = *member("data.pkl");
    if (crc32(0, program.bytes) != program.crc32)
      fail(where_, "data.pkl is damaged: its CRC-32 differs", "bytes as they were written", remedy);
    const Pickle pickle(program.bytes, where_, allowed_names);
    std::vector<std::string> path;
    visit(pickle.root(), path);
    return std::move(out_);
  }

 private:
  // torch names the archive's one folder after the file.
  std::string find_folder() const {
    for (const auto& [name, member] : members_)
      if (ends_with(name, "/data.pkl")) return name.substr(0, name.size() - std::string_view("data.pkl").size());
    fail(where_, "an archive without data.pkl", "a file that torch.save has written", remedy);
  }
  const ZipMember* member(const std::string& name) const {
    const auto found = members_.find(folder_ + name);
    return found == members_.end() ? nullptr : &found->second;
  }

  // A hostile file's dicts may hold each other many times over: the visits are counted.
  void visit(const PickleValue& value, std::vector<std::string>& path) {
    if (++visits_ > max_visits) fail(where_, str("more than ", max_visits, " values"), "dicts of tensors", remedy);
    if (value.kind == Kind::object) {
      add(value, path);
    } else if (value.kind == Kind::dict && path.size() < max_nesting) {
      for (size_t i = 0; i < value.items.size(); i += 2) {
        const PickleValue &key = *value.items[i], &inner = *value.items[i + 1];
        if (inner.kind != Kind::dict && inner.kind != Kind::object) continue;
        path.push_back(expect(key, Kind::text, "a key of a dict", where_).text);
        visit(inner, path);
        path.pop_back();
      }
    } else {
      fail(where_, path.empty() ? "holds no tensors" : str(join(path, "."), ": dicts nested deeper than ", max_nesting),
           "a tensor, or dicts of tensors", "give a file of tensors that PyTorch has written");
    }
  }

  const PickleValue& argument(const PickleValue& call, size_t i) const {
    if (i >= call.items.size())
      fail(where_, str(call.text, " with ", call.items.size(), " arguments"), "as many as PyTorch writes", remedy);
    return *call.items[i];
  }

  void add(const PickleValue& call, const std::vector<std::string>& path) {
    if (call.text == rebuild_parameter) return add(inner_tensor(argument(call, 0), path), path);
    if (call.text == rebuild_type)
      return add_rebuilt(argument(call, 2), expect(argument(call, 0), Kind::global, "a function", where_), path);
    if (call.text != rebuild) fail(where_, str(name(path), " is ", call.text), "a tensor", "save it as a plain tensor");
    add_arguments(call.items, path);
  }
  // A parameter's tensor; parameters of parameters do not exist, and a chain of them would not end in a hostile file.
  const PickleValue& inner_tensor(const PickleValue& value, const std::vector<std::string>& path) const {
    if (value.kind != Kind::object || value.text == rebuild_parameter) fail(where_, str(name(path), " is no tensor"), "a tensor", remedy);
    return value;
  }
  // torch._tensor._rebuild_from_type_v2(function, type, arguments, state): what `function` makes of the arguments.
  void add_rebuilt(const PickleValue& arguments, const PickleValue& function, const std::vector<std::string>& path) {
    if (function.text != rebuild)
      fail(where_, str(name(path), " is rebuilt by ", function.text), std::string(rebuild), "save it as a plain tensor");
    add_arguments(expect(arguments, Kind::tuple, "the arguments of a tensor", where_).items, path);
  }

  // (storage, offset, size, stride, ...), offset and stride in elements.
  void add_arguments(const std::vector<const PickleValue*>& arguments, const std::vector<std::string>& path) {
    if (arguments.size() < 4) fail(where_, str(name(path), " has ", arguments.size(), " arguments"), "at least 4", remedy);
    SavedTensor t;
    t.path = path;
    const int64_t elements = find_storage(*arguments[0], t);
    const int64_t offset = expect(*arguments[1], Kind::integer, "the offset of a tensor", where_).integer;
    t.shape = whole_numbers(*arguments[2], "the size of a tensor", where_);
    check_row_major(t, whole_numbers(*arguments[3], "the stride of a tensor", where_));
    const size_t bytes = checked_bytes(t.shape, t.dtype, where_);
    if (offset < 0 || offset > elements || bytes / size_of(t.dtype) > size_t(elements - offset))
      fail(where_, str(name(path), " leaves its storage of ", elements, " elements"), "a part of the storage", remedy);
    t.bytes = t.storage.subspan(size_t(offset) * size_of(t.dtype), bytes);
    out_.push_back(std::move(t));
  }

  // ("storage", class, key, device, number of elements); returns that number.
  int64_t find_storage(const PickleValue& value, SavedTensor& t) const {
    const auto& id = expect(*expect(value, Kind::persistent, name(t.path), where_).items[0], Kind::tuple, "a storage", where_);
    if (id.items.size() < 5) fail(where_, str("a storage of ", id.items.size(), " parts"), "5", remedy);
    const std::string& type = expect(*id.items[1], Kind::global, "the class of a storage", where_).text;
    const std::string& key = expect(*id.items[2], Kind::text, "the key of a storage", where_).text;
    const int64_t elements = expect(*id.items[4], Kind::integer, "the size of a storage", where_).integer;
    std::optional<Dtype> dtype;
    for (const StorageClass& c : storage_classes)
      if (c.name == type) dtype = c.dtype;
    if (!dtype) fail(where_, str(type, " as a storage"), "torch.FloatStorage, torch.BFloat16Storage, ...", remedy);
    t.dtype = *dtype;
    const ZipMember* stored = member("data/" + key);
    if (!stored) fail(where_, str("no member data/", key), "the bytes of each storage", remedy);
    if (elements < 0 || stored->bytes.size() % size_of(t.dtype) || stored->bytes.size() / size_of(t.dtype) != size_t(elements))
      fail(where_, str("member data/", key, " has ", stored->bytes.size(), " bytes"), str(elements, " elements of ", name_of(t.dtype)),
           remedy);
    t.storage = stored->bytes;
    t.crc32 = stored->crc32;
    return elements;
  }

  void check_row_major(const SavedTensor& t, const std::vector<int64_t>& stride) const {
    bool same = stride.size() == t.shape.size();
    int64_t next = 1;
    if (!checked_bytes(t.shape, t.dtype, where_)) return;
    for (size_t i = t.shape.size(); same && i-- > 0;) {
      same = t.shape[i] == 1 || stride[i] == next;  // the step along a dimension of 1 is never taken
      next *= t.shape[i];
    }
    if (!same) fail(where_, str(name(t.path), " is not stored row by row"), "a contiguous tensor", "call .contiguous() before it is saved");
  }

  static std::string name(const std::vector<std::string>& path) { return path.empty() ? "the tensor" : join(path, "."); }

  const std::string& where_;
  std::map<std::string, ZipMember> members_;
  std::string folder_;
  std::vector<SavedTensor> out_;
  size_t visits_ = 0;
};

}  // namespace

std::vector<SavedTensor> read_torch_save(std::span<const std::byte> stream, const std::string& where) {
  return Stream(stream, where).tensors();
}

void check_storage(const SavedTensor& t, const std::string& where) {
  if (crc32(0, t.storage) != t.crc32)
    fail(where,
         str(t.path.empty() ? "a tensor" : join(t.path, "."), " is damaged: the CRC-32 of its bytes is not the one that was written"),
         "bytes as they were written", "copy the checkpoint again; if it was saved with set_crc32_options(False), save it without that");
}

Dtype torch_dtype(const std::string& name, const std::string& where) {
  for (const Dtype d : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64, Dtype::u8, Dtype::i32, Dtype::i64})
    if (torch_name(d) == name) return d;
  fail(where, "dtype " + name, "float32, bfloat16, float16, float64, uint8, int32, int64", "save the tensors in one of these dtypes");
}

size_t checked_bytes(const std::vector<int64_t>& shape, Dtype dtype, const std::string& where) {
  size_t bytes = size_of(dtype);
  bool fits = shape.size() <= max_dimensions;
  for (const int64_t size : shape) fits = fits && size >= 0 && !__builtin_mul_overflow(bytes, size_t(size), &bytes);
  if (!fits || bytes > size_t(INT64_MAX)) fail(where, "a tensor of shape " + shape_text(shape), "at most 8 sizes and 2^63 bytes", remedy);
  return bytes;
}

}  // namespace tessera
