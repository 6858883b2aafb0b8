// Product: what Backend::gemm computes, a sum of matrix products with what is added to it on the way out.
//   c (m, n) = [c] + alpha * sum over terms of op(a) (m, k) * op(b) (k, n) + bias + addend
// The CPU rounds to c's dtype once. A library forms one term at a time (a GPU's; oneDNN, where it has matrix tiles), so there c is rounded
// after each, narrow terms first: what an adapter adds is small, and so is its rounding.
// A linear layer with an adapter is two terms: x W^T and t B^T. Its input gradient is two: dy W and dt A; layers that share an input add
// theirs. All a and b of one product have one dtype T (f32 or bf16; a GPU takes f16 too); sums are f32.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "core/tensor.h"

namespace tessera {

// A matrix (rows, cols) of 4-bit codes: weight i = round to T of table[code i] * scale of its block, i the flat row-major index, first
// code of a byte in the high nibble. Scales: absmax f32, or codes u8 with scale = f32(map[code] * nested_absmax[block / 256]) +
// nested_offset.
struct Codes4 {
  int64_t rows = 0, cols = 0, block = 64;
  const float* table = nullptr;  // 16 values, host
  const float* map = nullptr;    // 256 values, host; used when absmax is u8
  Tensor codes;                  // u8 (ceil(rows * cols / 2))
  Tensor absmax;                 // f32 or u8 (blocks)
  Tensor nested_absmax;          // f32 (ceil(blocks / 256)), when absmax is u8
  Tensor nested_offset;          // f32 (1), when absmax is u8
};

// The right-hand matrix of a product: values, or codes that are decoded on the way to the arithmetic units. A GPU writes one matrix at a
// time out to scratch memory, unless c has few rows (backend/device_scratch.h).
struct Factor {
  Factor() = default;
  Factor(Tensor values) : dense(values) {}  // NOLINT: a tensor is a factor
  Factor(const Codes4& c) : codes(c) {}     // NOLINT
  bool is_codes() const { return codes.table != nullptr; }
  int64_t rows() const { return is_codes() ? codes.rows : dense.rows(); }
  int64_t cols() const { return is_codes() ? codes.cols : dense.cols(); }

  Tensor dense;
  Codes4 codes;
};

struct Term {
  Tensor a;
  Factor b;
};

struct Product {
  static constexpr int most_terms = 8;

  Tensor c;                                       // T or f32
  bool transpose_a = false, transpose_b = false;  // of every term
  float alpha = 1;
  bool accumulate = false;  // onto c
  Tensor bias;              // (n) T, or empty
  Tensor addend;            // (m, n) T, or empty; may be c
  int terms = 0;
  Term term[most_terms];

  void add(Tensor a, const Factor& b) { term[terms++] = {a, b}; }
};

}  // namespace tessera
