#include "testing/golden.h"

#include <algorithm>
#include <cstdlib>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "io/safetensors.h"

namespace tessera {

namespace {
// Given by the build; in a bundle, which lies elsewhere, by the environment.
std::string shared_folder() {
  const char* given = std::getenv("TESSERA_SHARED");
  return given ? given : TESSERA_SHARED;
}
}  // namespace

std::string shared(const std::string& relative) { return shared_folder() + "/" + relative; }
bool have_shared() { return folder_exists(shared_folder()); }
std::string shared_text(const std::string& relative) { return read_file(shared(relative)); }
std::string sha256_of(const void* data, size_t bytes) { return sha256_hex({static_cast<const std::byte*>(data), bytes}); }

struct GoldenFile::Impl {
  TensorFiles files;
};

namespace {

template <class T>
std::vector<double> widen(const std::vector<T>& values) {
  std::vector<double> out(values.size());
  std::transform(values.begin(), values.end(), out.begin(), [](T v) { return double(v); });
  return out;
}
template <>
std::vector<double> widen(const std::vector<Bf16>& values) {
  return widen(std::vector<float>(values.begin(), values.end()));
}
template <>
std::vector<double> widen(const std::vector<F16>& values) {
  return widen(std::vector<float>(values.begin(), values.end()));
}

}  // namespace

GoldenFile::GoldenFile(const std::string& relative) : impl_(std::make_unique<Impl>(Impl{TensorFiles::open(shared(relative))})) {}
GoldenFile::GoldenFile(GoldenFile&&) noexcept = default;
GoldenFile& GoldenFile::operator=(GoldenFile&&) noexcept = default;
GoldenFile::~GoldenFile() = default;

std::vector<std::string> GoldenFile::names() const {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : impl_->files.all()) out.push_back(name);
  return out;
}

bool GoldenFile::has(const std::string& name) const { return impl_->files.find(name) != nullptr; }
std::string GoldenFile::dtype(const std::string& name) const { return impl_->files.get(name).dtype_name; }
std::vector<int64_t> GoldenFile::sizes(const std::string& name) const { return impl_->files.get(name).shape; }

Shape GoldenFile::shape(const std::string& name) const {
  Shape out;
  for (int64_t size : sizes(name)) out.dim.at(out.rank++) = size;
  return out;
}

std::vector<uint8_t> GoldenFile::bytes(const std::string& name) const {
  const auto& tensor = impl_->files.get(name);
  const auto* begin = reinterpret_cast<const uint8_t*>(tensor.data);
  return {begin, begin + tensor.bytes};
}

std::vector<float> GoldenFile::floats(const std::string& name) const {
  if (dtype(name) == "F32") return as<float>(name);
  const auto values = doubles(name);
  return {values.begin(), values.end()};
}

std::vector<double> GoldenFile::doubles(const std::string& name) const {
  const std::string type = dtype(name);
  if (type == "F64") return as<double>(name);
  if (type == "F32") return widen(as<float>(name));
  if (type == "BF16") return widen(as<Bf16>(name));
  if (type == "F16") return widen(as<F16>(name));
  if (type == "I64") return widen(as<int64_t>(name));
  if (type == "I32") return widen(as<int32_t>(name));
  if (type == "I8") return widen(as<int8_t>(name));
  if (type == "U8" || type == "BOOL") return widen(as<uint8_t>(name));
  fail(impl_->files.path() + ": " + name, "dtype " + type, "F64, F32, BF16, F16, I64, I32, I8, U8, BOOL", "extend GoldenFile::doubles");
}

size_t GoldenFile::whole(const std::string& name, size_t bytes, size_t size) {
  if (bytes % size) fail(name, str(bytes, " bytes"), str("a multiple of ", size), "read it with the type it is stored in");
  return bytes / size;
}

}  // namespace tessera
