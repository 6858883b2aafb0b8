#include "ops/elementwise.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

void fill_zero(Tensor x) {
  if (x.size()) x.home->fill_zero(x);
}

void convert(Tensor out, Tensor x) {
  require(out.size() == x.size() && (out.dtype == x.dtype || (computes_in(out.dtype) && (computes_in(x.dtype) || x.dtype == Dtype::f16))),
          "convert", "out f32 or bf16, x f32, bf16 or f16, of one size", {out, x});
  if (x.size()) x.home->convert(out, x);
}

void add(Tensor out, Tensor x, Tensor y) {
  require(computes_in(x.dtype) && same_kind(out, x) && same_kind(x, y), "add", "out, x, y of one shape, f32 or bf16", {out, x, y});
  if (x.size()) x.home->add(out, x, y);
}

void accumulate(Tensor sum, Tensor x) {
  require(is_vector(sum, Dtype::f32, x.size()) && computes_in(x.dtype), "accumulate", "sum f32, x f32 or bf16, of one size", {sum, x});
  if (x.size()) x.home->accumulate(sum, x);
}

void add_bias(Tensor y, Tensor bias) {
  require(computes_in(y.dtype) && is_vector(bias, y.dtype, y.cols()), "add_bias", "y (..., C), bias (C), f32 or bf16", {y, bias});
  if (y.size()) y.home->add_bias(y, bias);
}

void bias_backward(Tensor dbias, Tensor dy) {
  require(is_vector(dbias, Dtype::f32, dy.cols()) && computes_in(dy.dtype), "bias_backward", "dbias (C) f32, dy (..., C) f32 or bf16",
          {dbias, dy});
  if (dy.size()) dy.home->column_sum(dbias, dy);
}

void random_normal(Tensor out, const Rng& rng, uint64_t begin, float scale) {
  require(computes_in(out.dtype), "random_normal", "out f32 or bf16", {out});
  if (out.size()) out.home->random_normal(out, rng.key(), begin, scale);
}

void dropout(Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p) {
  require(
      computes_in(x.dtype) && same_kind(out, x) && x.shape.rank == 3 && is_vector(row_keys, Dtype::i64, x.shape.dim[0]) && p >= 0 && p < 1,
      "dropout", "out, x (B, T, C) f32 or bf16, row_keys (B) i64, 0 <= p < 1", {out, x, row_keys});
  if (x.size()) x.home->dropout(out, x, row_keys, key, p);
}

}  // namespace tessera
