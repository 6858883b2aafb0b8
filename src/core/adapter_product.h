// What the adapters of layers that share an input do with that input. Each has a narrow matrix A (r, k); x (m, k) is wide, and read or
// written once for all of them where a device can do so (Backend::adapters and the two after it).
#pragma once
#include <cstdint>

#include "core/tensor.h"

namespace tessera {

// Dropout of a matrix (m, k), m rows being those of row_keys after one another: as Backend::dropout with this key and p.
struct Drop {
  Tensor row_keys;  // (B) i64
  uint64_t key = 0;
  float p = 0;  // 0: nothing is dropped, and row_keys may be empty
};

struct AdapterProduct {
  static constexpr int most = 4;  // that share an input

  Tensor t;         // (m, r) T: drop(x) A^T; in the backward pass its gradient
  Tensor a;         // (r, k) T
  Tensor da;        // (r, k) f32
  float scale = 1;  // of t in the forward pass
  Drop drop;
};

}  // namespace tessera
