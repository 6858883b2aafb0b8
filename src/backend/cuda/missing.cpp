#include "backend/cuda/cuda.h"
#include "core/error.h"

namespace tessera::CUDA_SIDE {
namespace {
[[noreturn]] void missing(const char* what) { fail("device cuda", what, "operations that are built", "use --device cpu"); }
}  // namespace

void CudaBackend::gemm(const Product&) { missing("gemm"); }
void CudaBackend::convert(Tensor, Tensor) { missing("convert"); }
void CudaBackend::add(Tensor, Tensor, Tensor) { missing("add"); }
void CudaBackend::accumulate(Tensor, Tensor) { missing("accumulate"); }
void CudaBackend::add_bias(Tensor, Tensor) { missing("add_bias"); }
void CudaBackend::column_sum(Tensor, Tensor) { missing("column_sum"); }
void CudaBackend::random_normal(Tensor, uint64_t, uint64_t, float) { missing("random_normal"); }
void CudaBackend::dropout(Tensor, Tensor, Tensor, uint64_t, float) { missing("dropout"); }
void CudaBackend::embedding(Tensor, Tensor, Tensor) { missing("embedding"); }
void CudaBackend::embedding_backward(Tensor, Tensor, Tensor) { missing("embedding_backward"); }
void CudaBackend::gather_rows(Tensor, Tensor, Tensor) { missing("gather_rows"); }
void CudaBackend::scatter_rows(Tensor, Tensor, Tensor) { missing("scatter_rows"); }
void CudaBackend::rmsnorm_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool) { missing("rmsnorm_backward"); }
void CudaBackend::rope(Tensor, Tensor, Tensor, Tensor, bool) { missing("rope"); }
void CudaBackend::swiglu(Tensor, Tensor, Tensor) { missing("swiglu"); }
void CudaBackend::swiglu_backward(Tensor, Tensor, Tensor, Tensor, Tensor) { missing("swiglu_backward"); }
void CudaBackend::attention(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) { missing("attention"); }
void CudaBackend::attention_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) {
  missing("attention_backward");
}
void CudaBackend::cross_entropy(Tensor, Tensor, Tensor, Tensor, float) { missing("cross_entropy"); }
void CudaBackend::codebook4_encode(Tensor, Tensor, Tensor, const float*, int64_t) { missing("codebook4_encode"); }
void CudaBackend::codebook4_decode(Tensor, Tensor, Tensor, const float*, int64_t) { missing("codebook4_decode"); }
void CudaBackend::nested_decode(Tensor, Tensor, Tensor, Tensor, const float*) { missing("nested_decode"); }
void CudaBackend::nested_encode(Tensor, Tensor, Tensor, float, const float*) { missing("nested_encode"); }
void CudaBackend::adamw(Tensor, Tensor, Tensor, Tensor, Tensor, const AdamwStep&) { missing("adamw"); }
void CudaBackend::square_sums(Tensor, Tensor) { missing("square_sums"); }

}  // namespace tessera::CUDA_SIDE
