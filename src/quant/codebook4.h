// Encoding and decoding of Codebook4, whole or by ranges of blocks (each rank encodes what it owns).
// Rules: bitsandbytes' CUDA kernels with an IEEE reciprocal, numbers below 2^-126 counting as zero; docs/formats.md states them to the bit.
#pragma once
#include <vector>

#include "core/product.h"
#include "quant/format.h"

namespace tessera {

struct NestedAbsmax {
  std::vector<uint8_t> codes;        // one per block
  std::vector<float> nested_absmax;  // one per 256 blocks
  float offset = 0;                  // mean of absmax, summed in torch's CPU order
};

// 8-bit codes of the scales of one whole matrix (double quantization). `home` computes them; absmax is not changed.
NestedAbsmax encode_absmax(const std::vector<float>& absmax, Backend* home);
NestedAbsmax encode_absmax(const std::vector<float>& absmax, float offset, Backend* home);  // with a given offset
float torch_mean(const std::vector<float>& values);                                         // torch.mean on a CPU: its order of summation

// The matrix as kernels see it. REQUIRES: w is Codebook4 and bound to memory.
Codes4 codes_of(const Weight& w);

// The dense matrix (out, in) in `out`'s dtype. REQUIRES: w is Codebook4; scratch holds w.out*w.in/64 f32 (used when nested).
void decode(Tensor out, const Codebook4& w, Tensor scratch);

}  // namespace tessera
