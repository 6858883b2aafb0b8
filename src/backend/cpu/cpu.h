// CpuBackend: the operations of backend.h on the cores of this process. One file per operation beside this one.
#pragma once
#include "backend/backend.h"

namespace tessera {

// Who forms products: kernels of our own, or oneDNN where the processor has matrix tiles (AMX), which only it uses.
enum class ProductEngine { panels, onednn };
ProductEngine best_product_engine();

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads, ProductEngine engine = best_product_engine()) : threads_(threads), engine_(engine) {}
  std::string describe() const override;
  int threads() const override { return threads_; }

  Buffer reserve(size_t bytes, const char* what) override;
  size_t total_memory() const override;
  size_t free_memory() const override;
  void copy(void* to, const void* from, size_t bytes) override;
  void fill_zero(Tensor) override;

  void gemm(const Product&) override;

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
  // For one new token of a sequence, or a few. False: another kind, nothing is done.
  bool gemm_few_rows(const Product&);
  bool attention_one_query(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape);
  void gemm_onednn(const Product&);

  int threads_;
  ProductEngine engine_;
};

}  // namespace tessera
