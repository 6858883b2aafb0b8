#include "backend/cuda/cuda.h"
#include "core/error.h"

namespace tessera::CUDA_SIDE {
namespace {
[[noreturn]] void missing(const char* what) { fail("device cuda", what, "operations that are built", "use --device cpu"); }
}  // namespace

void CudaBackend::attention(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) { missing("attention"); }
void CudaBackend::attention_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) {
  missing("attention_backward");
}

}  // namespace tessera::CUDA_SIDE
