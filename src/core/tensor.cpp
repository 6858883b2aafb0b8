#include "core/tensor.h"

#include <cassert>

namespace tessera {

Shape::Shape(std::initializer_list<int64_t> sizes) {
  assert(sizes.size() <= dim.size());
  for (const int64_t s : sizes) dim[rank++] = s;
}

int64_t Shape::size() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= dim[i];
  return n;
}

std::string Shape::text() const {
  std::string s = "(";
  for (int i = 0; i < rank; ++i) s += (i ? ", " : "") + std::to_string(dim[i]);
  return s + ")";
}

Tensor Tensor::reshaped(Shape to) const {
  assert(to.size() == size());
  Tensor t = *this;
  t.shape = to;
  return t;
}

Tensor Tensor::rows_from(int64_t begin, int64_t count) const {
  assert(begin >= 0 && begin + count <= rows());
  Tensor t = *this;
  t.data = static_cast<std::byte*>(data) + size_t(begin * cols()) * size_of(dtype);
  t.shape = {count, cols()};
  return t;
}

}  // namespace tessera
