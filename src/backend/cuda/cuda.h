// CudaBackend: the operations of backend.h on one GPU, one file per operation beside this one, with the base names of backend/cpu.
// Operations are given to Lane::compute and return at once; only copy() to the host, finish() and allocation wait.
// It is compiled twice: for the GPU, and for the host as the test device cuda_host (runtime.h, device.h).
#pragma once
#include "backend/backend.h"
#include "backend/cuda/matmul.h"
#include "backend/cuda/nvml.h"
#include "backend/cuda/runtime.h"

namespace tessera::CUDA_SIDE {

class CudaBackend final : public Backend {
 public:
  CudaBackend(int index, int threads, uint64_t seed, const NvmlLibrary&);  // the library outlives it
  ~CudaBackend() override;
  std::string describe() const override;
  int threads() const override { return threads_; }

  Buffer reserve(size_t bytes, const char* what) override;
  size_t total_memory() const override;
  size_t free_memory() const override;
  Overhead overhead() override;
  void copy(void* to, const void* from, size_t bytes) override;
  void fill_zero(Tensor) override;
  bool on_device(const void*) const override;
  bool host_can_read() const override { return false; }
  Buffer reserve_pinned(size_t bytes, const char* what) override;
  Buffer pin(void* data, size_t bytes, const char* what) override;
  Moment now(Lane) override;
  void wait(Lane, Moment) override;
  void copy_beside(void* to, const void* from, size_t bytes) override;
  void finish() override;
  void* native(Lane) override;

  void gemm(const Product&) override;

  bool drops_inside(std::span<const AdapterProduct>) const override;
  void adapters(std::span<const AdapterProduct>, Tensor x, Tensor room) override;
  void adapters_backward(std::span<const AdapterProduct>, Tensor x, Tensor room) override;
  void adapters_input_gradient(Tensor dx, std::span<const AdapterProduct>, Tensor room) override;

  void convert(Tensor out, Tensor x) override;
  void add(Tensor out, Tensor x, Tensor y) override;
  void accumulate(Tensor sum, Tensor x) override;
  void add_bias(Tensor y, Tensor bias) override;
  void column_sum(Tensor sum, Tensor x) override;
  void random_normal(Tensor out, uint64_t key, uint64_t begin, float scale) override;
  void dropout(Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p) override;

  void embedding(Tensor out, Tensor table, Tensor ids) override;
  void embedding_backward(Tensor dtable, Tensor dout, Tensor ids) override;
  void gather_rows(Tensor out, Tensor x, Tensor index) override;
  void scatter_rows(Tensor out, Tensor x, Tensor index) override;
  void rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) override;
  void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool dx_accumulates) override;
  void rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) override;
  void swiglu(Tensor out, Tensor gate, Tensor up) override;
  void swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) override;
  void attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape) override;
  void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts,
                          AttentionShape) override;
  void cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) override;

  void codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block) override;
  void codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block) override;
  void nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map) override;
  void nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map) override;

  void adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep&) override;
  void square_sums(Tensor sums, Tensor x) override;
  void largest(Tensor parts, Tensor x) override;
  void sum_units(Tensor parts, Tensor x, int exponent) override;

 private:
  // At least so many bytes, until the next call; grows seldom: when the first step meets its largest need. In the ledger as `what`.
  std::byte* scratch(size_t bytes);

  void run_a_little();

  const NvmlLibrary& nvml_;
  const std::string bus_address_;
  const GpuUse before_;  // the device was opened
  OpenDevice device_;
  int threads_;
  Buffer scratch_;
  OpenMatmuls matmuls_;  // since the first product
};

}  // namespace tessera::CUDA_SIDE
