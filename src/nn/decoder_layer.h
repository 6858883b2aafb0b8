// One decoder layer of the Llama family (Touvron et al., 2023), which Mistral and Qwen2 share: two residual lines.
//   h = x + attention(norm(x));  y = h + mlp(norm(h))
// Variants are data: biases, head size, window. forward and backward are a pair; backward may be fed by a recompute.
#pragma once
#include "core/kernel_options.h"
#include "nn/linear.h"

namespace tessera {

struct DecoderLayer {
  int64_t H = 0, K = 0, D = 0, F = 0, C = 0;
  float eps = 1e-5f;
  AttentionShape attention;     // scale 1/sqrt(D), window of this layer
  Param input_norm, post_norm;  // (C)
  Linear q, k, v, o;            // (H*D, C), (K*D, C), (K*D, C), (C, H*D)
  Linear gate, up, down;        // (F, C), (F, C), (C, F)
};

// What stays from forward to a recompute. With the rest of the attention half, only the mlp half is formed again.
struct DecoderKept {
  Tensor x = {};                                            // (rows, C)
  Tensor q = {}, k = {}, v = {}, a = {}, lse = {}, h = {};  // as in DecoderSaved, or empty
};

// What backward needs.
struct DecoderSaved {
  Tensor x;            // (rows, C)
  Tensor n1, rstd1;    // norm(x)
  Tensor q, k, v;      // after rope
  Tensor a, lse;       // attention output (rows, H*D), (B, H, T)
  Tensor h;            // (rows, C)
  Tensor n2, rstd2;    // norm(h)
  Tensor gate, up, s;  // (rows, F), s = silu(gate) * up
  LinearSaved tq, tk, tv, to, tgate, tup, tdown;
};

// Room in the arena for the attention half.
DecoderKept take_kept(const DecoderLayer&, Tensor x, const Context&);
// Room for the rest of what backward needs.
DecoderSaved take_saved(const DecoderLayer&, const DecoderKept&, const Context&);

// y (rows, C) from saved.x; saved is filled.
void decoder_forward(Tensor y, const DecoderLayer&, DecoderSaved& saved, const Context&);
// Fills saved from what was kept: all that backward needs, and not the output of down_proj, which it does not. attention_kept: q to h
// are those of the forward pass.
void decoder_recompute(const DecoderLayer&, DecoderSaved& saved, bool attention_kept, const Context&);
// dx holds dy on entry and the gradient of x on return (the residual stream).
void decoder_backward(Tensor dx, const DecoderLayer&, const DecoderSaved& saved, const Context&);

template <class V>
void parts(DecoderLayer& l, V&& v) {
  v("input_layernorm.weight", l.input_norm);
  for (Linear* linear : {&l.q, &l.k, &l.v, &l.o}) parts(*linear, v);
  v("post_attention_layernorm.weight", l.post_norm);
  for (Linear* linear : {&l.gate, &l.up, &l.down}) parts(*linear, v);
}

// Calls f(linear) for the seven projections in file order.
template <class F>
void for_each_linear(DecoderLayer& l, F&& f) {
  for (Linear* linear : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) f(*linear);
}

}  // namespace tessera
