// What a layer needs in a call besides its weights and inputs, and the rules every layer keeps.
//
// THE RULE OF GRADIENTS: parameter gradients accumulate (+=), activation gradients overwrite (=), the residual stream is the exception:
// a layer's backward adds what flows through its branches to the gradient that flows past them.
//
// Letters in nn: B batch rows, T tokens of a row, C hidden, H heads, K key/value heads, D head size, F mlp, V vocabulary, r adapter rank.
// dx is the gradient of x. Activations have the compute dtype (f32 or bf16); parameter gradients are f32.
// A layer's forward takes what it must keep for backward (XSaved) and its scratch from the arena; the caller rewinds.
#pragma once
#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "core/tensor.h"

namespace tessera {

// Keys and values of the tokens so far, for generation. One row (B = 1).
struct KvCache {
  Tensor k, v;         // (1, capacity, K, D)
  int64_t length = 0;  // tokens filled in
};

struct Context {
  explicit Context(Arena& a) : arena(a) {}
  Arena& arena;
  Dtype dtype = Dtype::f32;
  int64_t B = 0, T = 0;
  Tensor positions;          // (B, T) i32
  Tensor starts;             // (B, T) i32: first key each query sees
  Tensor row_keys;           // (B) i64: random numbers of a row
  Tensor cos, sin;           // (P, R/2) f32
  uint64_t seed = 0;         // of dropout
  bool training = false;     // dropout acts
  KvCache* cache = nullptr;  // of the layer being run; null in training

  int64_t rows() const { return B * T; }
  Tensor take(int64_t rows, int64_t cols, const char* name) const { return arena.take(dtype, {rows, cols}, name); }
};

}  // namespace tessera
