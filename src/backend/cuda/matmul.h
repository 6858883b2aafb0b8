// One matrix product on the device, behind which both sides stand: matmul_cuda.cpp by cuBLASLt, cuda_host/matmul_host.cpp on the host.
#pragma once
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/cuda/runtime.h"
#include "core/dtype.h"

namespace tessera::CUDA_SIDE {

// c (m, n) = alpha * op(a) (m, k) op(b) (k, n) + beta * add + bias, sums in f32, rounded once; all matrices row after row.
struct MatmulShape {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  Dtype in = Dtype::f32;   // of a and b: f32 (in full precision), bf16 or f16
  Dtype out = Dtype::f32;  // of c and add: `in` or f32
  auto operator<=>(const MatmulShape&) const = default;
};
struct Matmul {
  MatmulShape shape;
  const void *a = nullptr, *b = nullptr;
  void* c = nullptr;
  float alpha = 1, beta = 0;
  const void* add = nullptr;   // (m, n), read when beta is not 0; may be c
  const void* bias = nullptr;  // (n) of c's dtype, or null. REQUIRES: takes_bias(shape), 16-byte aligned
};
bool takes_bias(const MatmulShape&);

// What is kept between products: the library, and for each shape the algorithm it has chosen.
struct Matmuls;
struct CloseMatmuls {
  void operator()(Matmuls*) const;
};
using OpenMatmuls = std::unique_ptr<Matmuls, CloseMatmuls>;
OpenMatmuls open_matmuls();  // throws Error when the library is missing

// Given to Lane::compute. workspace: matmul_workspace bytes, 256-byte aligned.
void matmul(Device&, Matmuls&, const Matmul&, void* workspace);

// The same product for a library that knows columns after columns only: its c is our c transposed, (n, m), so its left-hand matrix is our
// b and its right-hand one our a. rows, cols: of a matrix as it is stored, column after column; transpose: whether it takes part
// transposed.
struct ColumnMajor {
  struct Matrix {
    int64_t rows, cols;
    bool transpose;
    bool operator==(const Matrix&) const = default;
  };
  Matrix left, right, result;  // the distance between columns is `rows`
};
ColumnMajor column_major(const MatmulShape&);

}  // namespace tessera::CUDA_SIDE
