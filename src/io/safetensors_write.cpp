#include <algorithm>
#include <cassert>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/text.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace tessera {
namespace {

size_t bytes_of_shape(const TensorToWrite& t) {
  size_t product = size_of(t.dtype);
  for (const int64_t size : t.shape) {
    assert(size >= 0);
    product *= size_t(size);
  }
  return product;
}

// The order in which Hugging Face's library lays tensors out: element size, largest first, then name.
std::vector<const TensorToWrite*> file_order(const std::vector<TensorToWrite>& tensors) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    const size_t a_size = size_of(a->dtype), b_size = size_of(b->dtype);
    return a_size != b_size ? a_size > b_size : a->name < b->name;
  });
  return order;
}

// The length and the header, padded so that the data begin at a multiple of 8.
std::string header_text(const std::vector<const TensorToWrite*>& order, const std::map<std::string, std::string>& metadata) {
  std::string text = "{";
  const auto add = [&](const std::string& key, const Json& value) {
    text += str(text.size() > 1 ? "," : "", Json(key).dump(), ":", value.dump());
  };
  if (!metadata.empty()) add("__metadata__", Json(metadata));
  size_t begin = 0;
  for (const TensorToWrite* t : order) {
    const size_t end = begin + bytes_of_shape(*t);
    Json entry;
    entry["dtype"] = name_of(t->dtype);
    entry["shape"] = t->shape;
    entry["data_offsets"] = {begin, end};
    add(t->name, entry);
    begin = end;
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + text;
}

void check_names(const std::string& path, const std::vector<TensorToWrite>& tensors) {
  std::set<std::string> names;
  for (const TensorToWrite& t : tensors) {
    if (t.name == "__metadata__" || !names.insert(t.name).second) {
      fail(path, "tensor name " + t.name + (t.name == "__metadata__" ? "" : " twice"), "different names, none of them __metadata__",
           "this is a fault of the program that writes the file");
    }
  }
}

// Reads the complete file again; `hash` is that of the data as they were given.
void verify(const std::string& written, const std::string& path, const std::vector<const TensorToWrite*>& order, size_t header_bytes,
            const std::string& hash) {
  const TensorFiles files = TensorFiles::open(written);
  const MappedFile file(written);
  bool equal = files.all().size() == order.size();
  for (const TensorToWrite* t : order) {
    const StoredTensor* found = files.find(t->name);
    equal = equal && found && found->dtype_name == name_of(t->dtype) && found->shape == t->shape;
  }
  equal = equal && sha256_from(file, header_bytes) == hash;
  if (!equal) fail(path, "what was read back differs from what was written", "equal bytes", "check the disk, then write again");
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata, const BytesOf& bytes_of) {
  check_names(path, tensors);
  const auto order = file_order(tensors);
  const std::string header = header_text(order, metadata);
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(header)));
  Sha256 hash;
  for (const TensorToWrite* t : order) {
    const std::span<const std::byte> bytes = bytes_of(*t);
    assert(bytes.size() == bytes_of_shape(*t));
    file.write(bytes);
    hash.update(bytes);
  }
  file.sync();
  verify(file.temporary(), path, order, header.size(), hash.hex());
  file.commit();
}

void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  write_safetensors(path, tensors, metadata,
                    [](const TensorToWrite& t) { return std::span(static_cast<const std::byte*>(t.data), bytes_of_shape(t)); });
}

}  // namespace tessera
