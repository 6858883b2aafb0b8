#include "backend/cuda/matmul.h"

namespace tessera::CUDA_SIDE {

// A row-major matrix (r, c) is the column-major matrix (c, r): its transpose.
ColumnMajor column_major(const MatmulShape& s) {
  const auto stored = [](int64_t rows, int64_t cols, bool transpose) { return ColumnMajor::Matrix{cols, rows, transpose}; };
  return {.left = s.transpose_b ? stored(s.n, s.k, true) : stored(s.k, s.n, false),
          .right = s.transpose_a ? stored(s.k, s.m, true) : stored(s.m, s.k, false),
          .result = stored(s.m, s.n, false)};
}

// cuBLASLt adds a bias of c's dtype on the way out.
bool takes_bias(const MatmulShape& s) { return s.in != Dtype::f32 && s.in == s.out; }

}  // namespace tessera::CUDA_SIDE
