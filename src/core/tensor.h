// Tensor: a view of numbers. It says where they are, what they are, and what shape they have; it owns nothing and is free to copy.
// Rows are contiguous (row-major), the last dimension is the fastest. Lifetimes belong to Buffer and Arena.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/dtype.h"

namespace tessera {

class Backend;  // backend/backend.h

struct Shape {
  int rank = 0;
  std::array<int64_t, 4> dim{};
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);  // REQUIRES: at most 4 sizes
  int64_t size() const;                         // number of elements; 1 for rank 0
  int64_t cols() const { return rank ? dim[rank - 1] : 1; }
  int64_t rows() const { return cols() ? size() / cols() : 0; }  // product of all but the last
  bool operator==(const Shape&) const = default;
  std::string text() const;  // "(2, 512, 576)"
};

struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  Shape shape;
  Backend* home = nullptr;  // whose memory it is; ops dispatch through it

  bool empty() const { return data == nullptr; }
  int64_t size() const { return shape.size(); }
  int64_t rows() const { return shape.rows(); }
  int64_t cols() const { return shape.cols(); }
  size_t bytes() const { return size_t(shape.size()) * size_of(dtype); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  Tensor reshaped(Shape) const;                          // REQUIRES: same size
  Tensor rows_from(int64_t begin, int64_t count) const;  // rows [begin, begin+count) as (count, cols)
};

// A stored array of a layer and, where it trains, the place its gradient is summed into.
// value: compute dtype while bound. grad: f32, same shape; empty when the array is frozen.
struct Param {
  Tensor value;
  Tensor grad;
  bool trains = false;
};

}  // namespace tessera
