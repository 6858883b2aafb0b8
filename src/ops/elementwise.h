// Elementwise operations: conversion, residual sums, bias and its gradient, dropout.
#pragma once
#include "core/rng.h"
#include "core/tensor.h"

namespace tessera {

void fill_zero(Tensor x);
void convert(Tensor out, Tensor x);           // to f32 or bf16, nearest even; a plain copy when the dtypes agree
void add(Tensor out, Tensor x, Tensor y);     // out = x + y; out may be x or y
void accumulate(Tensor sum, Tensor x);        // sum (f32) += x
void add_bias(Tensor y, Tensor bias);         // each row of y += bias (cols)
void bias_backward(Tensor dbias, Tensor dy);  // dbias (cols, f32) += sum of rows
void random_normal(Tensor out, const Rng&, uint64_t begin, float scale);  // out[i] = scale * rng.normal(begin + i), f32 or bf16
// out = x * mask / (1 - p), the mask from Philox(key, row_keys[b]) at t*C + c; its own backward when called on dy. x (B, T, C).
void dropout(Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p);

}  // namespace tessera
