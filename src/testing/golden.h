// Golden files under ../shared: present on the developers' machines, absent elsewhere. For *_test.cpp only.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace tessera {

// Path of a file or folder under ../shared, e.g. shared("golden/quant/bnb_4bit/random.json").
std::string shared(const std::string& relative);
bool have_shared();

// A whole file as text. A test that wants JSON parses it: nlohmann::ordered_json::parse(shared_text("golden/...json")).
std::string shared_text(const std::string& relative);

// SHA-256 of the elements' bytes, in hexadecimal.
std::string sha256_of(const void* data, size_t bytes);
template <class T>
std::string sha256_of(const std::vector<T>& elements) {
  return sha256_of(elements.data(), elements.size() * sizeof(T));
}

// The tensors of a .safetensors file, or of a model folder, under ../shared. Unknown names throw Error.
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& relative);
  GoldenFile(GoldenFile&&) noexcept;
  GoldenFile& operator=(GoldenFile&&) noexcept;
  ~GoldenFile();

  std::vector<std::string> names() const;  // sorted
  bool has(const std::string& name) const;
  std::string dtype(const std::string& name) const;  // as written: "BF16"
  std::vector<int64_t> sizes(const std::string& name) const;
  Shape shape(const std::string& name) const;  // REQUIRES: at most 4 sizes
  std::vector<uint8_t> bytes(const std::string& name) const;
  // The stored elements, not converted, e.g. as<Bf16>(name). Throws Error when the bytes are no whole number of T.
  template <class T>
  std::vector<T> as(const std::string& name) const {
    const auto stored = bytes(name);
    std::vector<T> out(whole(name, stored.size(), sizeof(T)));
    if (!out.empty()) std::memcpy(static_cast<void*>(out.data()), stored.data(), stored.size());
    return out;
  }
  std::vector<float> floats(const std::string& name) const;    // F32, BF16, F16 and F64 as float
  std::vector<double> doubles(const std::string& name) const;  // any of these or an integer type, as double

 private:
  static size_t whole(const std::string& name, size_t bytes, size_t size);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera

// First line of a test that reads ../shared.
#define NEEDS_SHARED() \
  if (!tessera::have_shared()) GTEST_SKIP() << "skipped: no ../shared"
