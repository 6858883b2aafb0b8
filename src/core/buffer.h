// Buffer: the one owner of a piece of memory. Move-only; freed by the function its maker gave it. It may stand in a ledger as long as it
// lives.
#pragma once
#include <cstddef>
#include <utility>

#include "core/ledger.h"

namespace tessera {

class Buffer {
 public:
  using Free = void (*)(void* data, size_t bytes);

  Buffer() = default;
  Buffer(void* data, size_t bytes, Free free) : data_(data), bytes_(bytes), free_(free) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_) free_(data_, bytes_);
  }

  void charge(Ledger& ledger, const char* what, size_t bytes) { charge_ = Charge(ledger, what, bytes); }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(free_, other.free_);
    std::swap(charge_, other.charge_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Free free_ = nullptr;
  Charge charge_;
};

}  // namespace tessera
