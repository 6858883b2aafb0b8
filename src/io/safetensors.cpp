#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/text.h"
#include "io/json.h"

namespace tessera {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr size_t max_header = 100'000'000;  // the limit of Hugging Face's library
constexpr const char* metadata_key = "__metadata__";
constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";
constexpr const char* fetch_again = "fetch or export the file again";

// Every dtype of the format, also those that no kernel reads.
struct FormatDtype {
  std::string_view name;
  uint64_t bits;
  std::optional<Dtype> ours;
};
const std::array<FormatDtype, 23> format_dtypes{
    {{"F32", 32, Dtype::f32}, {"BF16", 16, Dtype::bf16}, {"F16", 16, Dtype::f16}, {"F64", 64, Dtype::f64}, {"U8", 8, Dtype::u8},
     {"I32", 32, Dtype::i32}, {"I64", 64, Dtype::i64},   {"BOOL", 8, {}},         {"I8", 8, {}},           {"F8_E4M3", 8, {}},
     {"F8_E5M2", 8, {}},      {"F8_E8M0", 8, {}},        {"F8_E4M3FNUZ", 8, {}},  {"F8_E5M2FNUZ", 8, {}},  {"I16", 16, {}},
     {"U16", 16, {}},         {"U32", 32, {}},           {"U64", 64, {}},         {"C64", 64, {}},         {"F4", 4, {}},
     {"F6_E2M3", 6, {}},      {"F6_E3M2", 6, {}},        {"C128", 128, {}}}};

const FormatDtype& format_dtype(const std::string& name, const std::string& where) {
  const auto* found = std::find_if(format_dtypes.begin(), format_dtypes.end(), [&](const auto& d) { return d.name == name; });
  if (found == format_dtypes.end()) {
    std::vector<std::string> names;
    for (const auto& d : format_dtypes) names.emplace_back(d.name);
    fail(where, "dtype " + name, join(names, ", "), "export the model with one of these dtypes");
  }
  return *found;
}

bool multiply_fits(uint64_t& product, uint64_t factor) { return !__builtin_mul_overflow(product, factor, &product); }

// Bytes of a tensor; nothing when elements or bytes do not fit their numbers, or the bits do not fill whole bytes. Sizes beside a 0 are
// held to the same bound, so that they may be multiplied in any order.
std::optional<uint64_t> byte_size(const std::vector<int64_t>& shape, uint64_t bits) {
  uint64_t elements = 1;
  for (const int64_t size : shape) {
    if (size && (!multiply_fits(elements, uint64_t(size)) || elements > uint64_t(INT64_MAX))) return std::nullopt;
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  if (!multiply_fits(elements, bits) || elements % 8) return std::nullopt;
  return elements / 8;
}

// The checks of one file's header, each with an error that names the file and the tensor.
class HeaderReader {
 public:
  explicit HeaderReader(const MappedFile& file) : file_(file), path_(file.path()) {}
  std::vector<StoredTensor> read(std::map<std::string, std::string>& metadata);

 private:
  [[noreturn]] void refuse(const std::string& given, const std::string& allowed) const { fail(path_, given, allowed, fetch_again); }
  uint64_t header_length() const;
  void read_metadata(const Json& entry, std::map<std::string, std::string>& metadata) const;
  StoredTensor read_tensor(const std::string& name, const Json& entry);
  std::vector<int64_t> read_shape(const std::string& where, const Json& entry) const;
  std::pair<uint64_t, uint64_t> read_offsets(const std::string& where, const Json& entry) const;
  void check_cover(std::vector<StoredTensor> tensors) const;

  const MappedFile& file_;
  const std::string& path_;
  const std::byte* data_ = nullptr;  // behind the header
  uint64_t data_bytes_ = 0;
  uint64_t needed_ = 0;  // data bytes that the header describes
};

uint64_t HeaderReader::header_length() const {
  if (file_.size() < 8) refuse(str("a file of ", file_.size(), " bytes"), "at least 8 bytes, the length of the header");
  uint64_t length = 0;
  std::memcpy(&length, file_.data(), 8);
  if (length > max_header)
    refuse(str("a header of ", length, " bytes"), str("at most ", max_header, " bytes; is this a safetensors file?"));
  if (length > file_.size() - 8) {
    refuse(str("a header of ", length, " bytes in a file of ", file_.size(), " bytes"), "a header inside the file");
  }
  return length;
}

std::vector<StoredTensor> HeaderReader::read(std::map<std::string, std::string>& metadata) {
  const uint64_t length = header_length();
  data_ = file_.data() + 8 + length;
  data_bytes_ = file_.size() - 8 - length;
  const std::string text(reinterpret_cast<const char*>(file_.data()) + 8, length);
  const Json header = parse_json(text, path_ + " (header)");
  if (!header.is_object() || text[0] != '{') refuse("the header is no JSON object", "a header that begins with {");

  for (const auto& [name, entry] : header.items()) {
    if (name == metadata_key || !entry.is_object() || !entry.contains("data_offsets")) continue;
    needed_ = std::max(needed_, read_offsets(path_ + ": " + name, entry).second);
  }
  std::vector<StoredTensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == metadata_key)
      read_metadata(entry, metadata);
    else
      tensors.push_back(read_tensor(name, entry));
  }
  check_cover(tensors);
  return tensors;
}

void HeaderReader::read_metadata(const Json& entry, std::map<std::string, std::string>& metadata) const {
  if (!entry.is_object()) refuse(std::string(metadata_key) + " is no object", "an object of strings");
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) refuse(str(metadata_key, ": the value of \"", key, "\" is ", value.dump()), "a string");
    metadata.emplace(key, value.get_ref<const std::string&>());
  }
}

StoredTensor HeaderReader::read_tensor(const std::string& name, const Json& entry) {
  const std::string where = path_ + ": " + name;
  if (!entry.is_object()) fail(where, "no JSON object", "an object with dtype, shape and data_offsets", fetch_again);
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!entry.contains(key)) fail(where, str("no ", key), "dtype, shape and data_offsets", fetch_again);
  }
  if (!entry["dtype"].is_string()) fail(where, "dtype " + entry["dtype"].dump(), "a string", fetch_again);
  const FormatDtype& dtype = format_dtype(entry["dtype"].get<std::string>(), where);

  StoredTensor out{.name = name, .dtype_name = std::string(dtype.name), .shape = read_shape(where, entry), .file = &file_};
  out.dtype = dtype.ours.value_or(Dtype::u8);
  out.known_dtype = dtype.ours.has_value();
  const auto [begin, end] = read_offsets(where, entry);
  if (end > data_bytes_) {
    fail(where, str("data_offsets end at ", end, ", but ", data_bytes_, " bytes follow the header"),
         str("a file of ", file_.size() - data_bytes_ + needed_, " bytes; this one has ", file_.size()), fetch_again);
  }
  const auto bytes = byte_size(out.shape, dtype.bits);
  if (!bytes || *bytes != end - begin) {
    fail(where, str("shape ", out.shape_text(), " of ", dtype.name, " over ", end - begin, " bytes"),
         bytes ? str(*bytes, " bytes") : "a shape whose bytes are a whole 64-bit number", fetch_again);
  }
  out.data = data_ + begin;
  out.bytes = end - begin;
  return out;
}

std::vector<int64_t> HeaderReader::read_shape(const std::string& where, const Json& entry) const {
  const Json& shape = entry["shape"];
  const auto is_size = [](const Json& v) { return v.is_number_unsigned() && v.get<uint64_t>() <= uint64_t(INT64_MAX); };
  if (!shape.is_array() || !std::all_of(shape.begin(), shape.end(), is_size)) {
    fail(where, "shape " + shape.dump(), "an array of whole numbers, none negative", fetch_again);
  }
  return shape.get<std::vector<int64_t>>();
}

std::pair<uint64_t, uint64_t> HeaderReader::read_offsets(const std::string& where, const Json& entry) const {
  const Json& offsets = entry["data_offsets"];
  const bool good = offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() && offsets[1].is_number_unsigned();
  if (!good || offsets[0].get<uint64_t>() > offsets[1].get<uint64_t>()) {
    fail(where, "data_offsets " + offsets.dump(), "[begin, end], whole numbers with begin <= end", fetch_again);
  }
  return {offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>()};
}

// Sorted by place, each tensor must begin where the one before it ends, and the last must end with the file.
void HeaderReader::check_cover(std::vector<StoredTensor> tensors) const {
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return std::pair(a.data, a.bytes) < std::pair(b.data, b.bytes); });
  const std::byte* reached = data_;
  const std::string* before = nullptr;
  for (const StoredTensor& t : tensors) {
    if (t.data < reached) fail(path_ + ": " + t.name, "its bytes overlap those of " + *before, "bytes of its own", fetch_again);
    if (t.data > reached) {
      fail(path_ + ": " + t.name, str(t.data - reached, " bytes before it belong to no tensor"), "data without holes", fetch_again);
    }
    reached = t.data + t.bytes;
    before = &t.name;
  }
  const auto rest = size_t(data_ + data_bytes_ - reached);
  if (rest) refuse(str(rest, " bytes at its end belong to no tensor"), str("a file of ", file_.size() - rest, " bytes"));
}

// A name without a folder: what lies behind a folder's name could be a link to anywhere.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
}

// weight_map of an index: tensor -> shard. Shards stay inside the folder.
std::map<std::string, std::string> read_index(const std::string& path) {
  const Json index = read_json(path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    fail(path, "no object \"weight_map\"", "{\"weight_map\": {tensor: file, ...}}", fetch_again);
  }
  std::map<std::string, std::string> out;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) fail(path, tensor + ": " + shard.dump(), "the name of a file", fetch_again);
    const auto& file = shard.get_ref<const std::string&>();
    if (!is_plain_name(file)) {
      fail(path, tensor + ": file \"" + file + "\"", "the name of a file in the model's folder",
           "do not load this model, or correct the index");
    }
    out.emplace(tensor, file);
  }
  return out;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> parts;
  for (const int64_t size : shape) parts.push_back(std::to_string(size));
  return "[" + join(parts, ", ") + "]";
}

void TensorFiles::forget_pages() const {
  for (const auto& file : files_) file->drop(0, file->size());
}

int64_t StoredTensor::size() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

Tensor StoredTensor::view(int64_t begin, int64_t count, Backend* home) const {
  assert(begin >= 0 && count >= 0 && begin + count <= size());
  if (!known_dtype || reinterpret_cast<uintptr_t>(data) % size_of(dtype) != 0) return {};
  return {const_cast<std::byte*>(data) + size_t(begin) * size_of(dtype), dtype, {count}, home};
}

void StoredTensor::forget(int64_t begin, int64_t count) const {
  if (!file || !known_dtype) return;
  const size_t at = size_t(data - file->data()), width = size_of(dtype);
  file->drop(at + size_t(begin) * width, at + size_t(begin + count) * width);
}

std::string StoredTensor::where() const { return (file ? file->path() + ": " : "") + name; }
std::string StoredTensor::shape_text() const { return tessera::shape_text(shape); }

void TensorFiles::add_file(const std::string& path) {
  files_.push_back(std::make_unique<MappedFile>(path));
  file_names_.push_back(path);
  for (StoredTensor& t : HeaderReader(*files_.back()).read(metadata_)) {
    const auto [place, fresh] = tensors_.try_emplace(t.name, t);
    if (!fresh) fail(t.where(), "also in " + place->second.file->path(), "each tensor in one file", fetch_again);
  }
}

void TensorFiles::add_shards(const std::string& index_path) {
  const auto index = read_index(index_path);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index) shards.insert(shard);
  for (const std::string& shard : shards) {
    if (!file_exists(path_ + "/" + shard))
      fail(index_path, "names " + shard + ", which is not there", "all its files", "fetch the file " + shard);
  }
  for (const std::string& shard : shards) add_file(path_ + "/" + shard);

  for (const auto& [tensor, shard] : index) {
    const StoredTensor* found = find(tensor);
    if (found && found->file->path() == path_ + "/" + shard) continue;
    fail(index_path, tensor + " is not in " + shard + (found ? ", but in " + file_name(found->file->path()) : ""),
         "every tensor in the file that the index names", fetch_again);
  }
  for (const auto& [name, tensor] : tensors_) {
    if (!index.contains(name))
      fail(tensor.where(), "a tensor that " + file_name(index_path) + " does not name", "tensors of the index", fetch_again);
  }
}

TensorFiles TensorFiles::open(const std::string& path) {
  TensorFiles out;
  out.path_ = path;
  const std::string single = path + "/" + single_name, index = path + "/" + index_name;
  if (!folder_exists(path)) {
    out.add_file(path);
  } else if (file_exists(single)) {
    out.add_file(single);
  } else if (file_exists(index)) {
    out.add_shards(index);
  } else {
    fail(path, "no weights", str(single_name, ", or ", index_name, " and its files"),
         "check the path, or convert the weights to safetensors");
  }
  return out;
}

const StoredTensor* TensorFiles::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const StoredTensor& TensorFiles::get(const std::string& name) const {
  if (const StoredTensor* found = find(name)) return *found;
  std::vector<std::string> names;
  for (const auto& [other, tensor] : tensors_) names.push_back(other);
  const std::string near = nearest(name, names);
  const std::string where = files_.size() == 1 ? file_names_[0] : path_ + "/" + index_name;
  fail(where, "no tensor " + name, near.empty() ? str("one of its ", names.size(), " tensors") : "for example " + near,
       "check that the weights belong to the config");
}

}  // namespace tessera
