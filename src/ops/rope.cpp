#include "ops/rope.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {
namespace {

void rotate(const char* operation, Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) {
  require(computes_in(x.dtype) && x.shape.rank == 4 && cos.dtype == Dtype::f32 && same_kind(cos, sin) && 2 * cos.cols() <= x.cols() &&
              is_vector(positions, Dtype::i32, x.shape.dim[0] * x.shape.dim[1]),
          operation, "x (B, T, H, D) f32 or bf16, cos and sin (P, R/2) f32 with R <= D, positions (B, T) i32", {x, cos, sin, positions});
  if (x.size()) x.home->rope(x, cos, sin, positions, inverse);
}

}  // namespace

void rope(Tensor x, Tensor cos, Tensor sin, Tensor positions) { rotate("rope", x, cos, sin, positions, false); }
void rope_backward(Tensor dx, Tensor cos, Tensor sin, Tensor positions) { rotate("rope_backward", dx, cos, sin, positions, true); }

}  // namespace tessera
