// The parts of attention and its gradient on the GPU, one file each.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime.h"
#include "core/dtype.h"
#include "core/kernel_options.h"
#include "core/tensor.h"

namespace tessera::CUDA_SIDE {

// Shapes as in Backend::attention. window: all keys where there is no limit.
struct AttentionSizes {
  int queries, keys, heads, key_heads, width, window;
  float scale;
};
AttentionSizes attention_sizes(Tensor q, Tensor k, AttentionShape);

struct AttentionTensors {
  Tensor out, lse, q, k, v, starts;
  Tensor dout, dq, dk, dv, delta;  // backward; delta (B, H, T) f32: sum of dout * out over the head
};

// 16-bit numbers in a head size the tensor cores are given, all addresses multiples of 16 bytes.
bool on_tensor_cores(const AttentionTensors&);

// Any head size up to 384, f32, bf16 or f16: products in f32, without tensor cores.
void plain_attention(Device&, const AttentionTensors&, const AttentionSizes&);
void plain_attention_backward(Device&, const AttentionTensors&, const AttentionSizes&);

// REQUIRES: on_tensor_cores. delta is given.
void tiled_attention_dq(Device&, const AttentionTensors&, const AttentionSizes&);

// Calls f.operator()<T>() for f32, bf16 or f16.
template <class F>
void dispatch_any_float(Dtype dtype, F&& f) {
  if (dtype == Dtype::f16) return f.template operator()<F16>();
  if (dtype == Dtype::bf16) return f.template operator()<Bf16>();
  f.template operator()<float>();
}

// Calls f.operator()<T, D>() where on_tensor_cores: D is the head size, filled up to one that has kernels.
template <class F>
void dispatch_tiles(Dtype dtype, int64_t width, F&& f) {
  const auto of_width = [&]<class T>() {
    if (width == 64) return f.template operator()<T, 64>();
    if (width <= 96) return f.template operator()<T, 96>();
    if (width == 128) return f.template operator()<T, 128>();
    f.template operator()<T, 256>();
  };
  if (dtype == Dtype::f16) return of_width.template operator()<F16>();
  of_width.template operator()<Bf16>();
}

}  // namespace tessera::CUDA_SIDE
