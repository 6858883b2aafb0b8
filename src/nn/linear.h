// Linear: a stored matrix, perhaps a bias, perhaps an adapter. Storage and adapter are independent of each other.
//   y = x W^T + bias + scale * (dropout(x) A^T) B^T      LoRA: Hu et al., 2021; scale = alpha / r (or alpha / sqrt(r))
#pragma once
#include <initializer_list>
#include <optional>
#include <string>

#include "nn/context.h"
#include "quant/format.h"

namespace tessera {

struct Adapter {
  Param a;  // (r, in)
  Param b;  // (out, r)
  float scale = 1;
  float dropout = 0;  // on the adapter's input, in training
};

struct Linear {
  std::string name;  // "self_attn.q_proj": part of the key of its random numbers, and of names in files
  int layer = 0;
  Weight weight;              // (out, in)
  std::optional<Param> bias;  // (out)
  std::optional<Adapter> adapter;
};

struct LinearSaved {
  Tensor t;  // (rows, r) = scale * dropout(x) A^T; empty without adapter
};

// One of the layers that read the same x (rows, in): y (rows, out) = layer(x) [+ addend (rows, out)].
struct LinearCall {
  Tensor y;
  const Linear& layer;
  LinearSaved* saved;  // may be null: nothing is kept
  Tensor addend = {};
};
// At most 4. What their adapters form of x is formed together.
void linear_forward(std::initializer_list<LinearCall>, Tensor x, const Context&);
// Only their saved->t, for a recompute that does not need y.
void linear_forward_adapters(std::initializer_list<LinearCall>, Tensor x, const Context&);

// A linear layer seen from behind.
struct LinearGradient {
  const Linear& layer;
  Tensor dy;
  const LinearSaved& saved;
};
// dx = (+= when dx_accumulates) the gradient of the x that all of these (at most 4) read, unless empty; gradients of A, B, bias and a
// training W accumulate.
void linear_backward(Tensor dx, bool dx_accumulates, std::initializer_list<LinearGradient>, Tensor x, const Context&);

// Room for LinearSaved in the arena.
LinearSaved take_saved(const Linear&, int64_t rows, const Context&);

// Calls v(name, Param&) for each stored array, in the order of the unit's layout. Names as in Hugging Face and PEFT files.
template <class V>
void parts(Linear& l, V&& v) {
  parts(l.weight, [&](const char* suffix, Param& p) { v(l.name + ".weight" + suffix, p); });
  if (l.bias) v(l.name + ".bias", *l.bias);
  if (l.adapter) v(l.name + ".lora_A.weight", l.adapter->a), v(l.name + ".lora_B.weight", l.adapter->b);
}

}  // namespace tessera
