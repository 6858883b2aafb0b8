// Root: what stands around the decoder layers: the token embedding before them; the final norm, the head and the loss after them.
#pragma once
#include <optional>

#include "nn/context.h"

namespace tessera {

struct Root {
  int64_t C = 0, V = 0;
  float eps = 1e-5f;
  Param embed;                // (V, C)
  Param norm;                 // (C)
  std::optional<Param> head;  // (V, C); none: tied to the embedding
};

// x (rows, C) = embed[ids (B, T) i32]; backward adds to embed's gradient when it trains.
void root_embed(Tensor x, const Root&, Tensor ids);
void root_embed_backward(const Root&, Tensor dx, Tensor ids);

// The rows of x that have a target.
struct Targets {
  Tensor rows;    // (n) i32, ascending
  Tensor labels;  // (n) i32
};

// losses (n) f32 = -log p of each target. x (rows, C). When dx is given (rows, C): dx = gradient of their sum * scale, and the gradients of
// norm and head accumulate. Logits are formed in chunks of rows, never whole. n may be 0.
void root_loss(Tensor losses, const Root&, Tensor x, const Targets&, Tensor dx, float scale, const Context&);

// Logits (n, V) f32 of the listed rows (n) i32 of x, for generation and tests.
void root_logits(Tensor logits, const Root&, Tensor x, Tensor rows, const Context&);

template <class V>
void parts(Root& r, V&& v) {
  v("model.embed_tokens.weight", r.embed);
  v("model.norm.weight", r.norm);
  if (r.head) v("lm_head.weight", *r.head);
}

}  // namespace tessera
