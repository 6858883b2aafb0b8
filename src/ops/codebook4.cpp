#include "ops/codebook4.h"

#include <cassert>

#include "backend/backend.h"

namespace tessera {

namespace {

[[maybe_unused]] int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

[[maybe_unused]] bool codes_fit(Tensor codes, Tensor absmax, int64_t n, int64_t block) {
  return block >= 32 && block <= 4096 && block % 32 == 0 && codes.dtype == Dtype::u8 && codes.size() == pieces(n, 2) &&
         absmax.dtype == Dtype::f32 && absmax.size() == pieces(n, block);
}

}  // namespace

void codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block) {
  assert(x.dtype == Dtype::f32 || x.dtype == Dtype::bf16 || x.dtype == Dtype::f16);
  assert(codes_fit(codes, absmax, x.size(), block));
  assert(table != nullptr);
  if (x.size()) x.home->codebook4_encode(codes, absmax, x, table, block);
}

void codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block) {
  assert(out.dtype == Dtype::f32 || out.dtype == Dtype::bf16);
  assert(codes_fit(codes, absmax, out.size(), block));
  assert(table != nullptr);
  if (out.size()) out.home->codebook4_decode(out, codes, absmax, table, block);
}

void nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map) {
  assert(absmax.dtype == Dtype::f32 && q.dtype == Dtype::u8 && q.size() == absmax.size());
  assert(scale.dtype == Dtype::f32 && scale.size() == pieces(q.size(), 256));
  assert(offset.dtype == Dtype::f32 && offset.size() == 1);
  assert(map != nullptr);
  if (q.size()) absmax.home->nested_decode(absmax, q, scale, offset, map);
}

void nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map) {
  assert(absmax.dtype == Dtype::f32 && q.dtype == Dtype::u8 && q.size() == absmax.size());
  assert(scale.dtype == Dtype::f32 && scale.size() == pieces(q.size(), 256));
  assert(map != nullptr);
  if (q.size()) absmax.home->nested_encode(q, scale, absmax, offset, map);
}

}  // namespace tessera
