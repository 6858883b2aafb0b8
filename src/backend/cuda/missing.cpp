#include "backend/cuda/cuda.h"
#include "core/error.h"

namespace tessera::CUDA_SIDE {
namespace {
[[noreturn]] void missing(const char* what) { fail("device cuda", what, "operations that are built", "use --device cpu"); }
}  // namespace

void CudaBackend::random_normal(Tensor, uint64_t, uint64_t, float) { missing("random_normal"); }
void CudaBackend::dropout(Tensor, Tensor, Tensor, uint64_t, float) { missing("dropout"); }
void CudaBackend::attention(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) { missing("attention"); }
void CudaBackend::attention_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) {
  missing("attention_backward");
}
void CudaBackend::cross_entropy(Tensor, Tensor, Tensor, Tensor, float) { missing("cross_entropy"); }
void CudaBackend::adamw(Tensor, Tensor, Tensor, Tensor, Tensor, const AdamwStep&) { missing("adamw"); }
void CudaBackend::square_sums(Tensor, Tensor) { missing("square_sums"); }

}  // namespace tessera::CUDA_SIDE
