// DryBackend: a device that hands out memory and computes nothing. A run over it makes every allocation and every call of a real run and
// takes no time: the memory plan. Memory is addresses only; its pages are committed where the host writes to them.
// It stands for a CPU, or for a GPU: then its memory is told from the host's, and it holds the scratch that CudaBackend would hold.
#pragma once
#include "backend/backend.h"

namespace tessera {

class DryBackend final : public Backend {
 public:
  explicit DryBackend(bool gpu = false) : gpu_(gpu) {}
  double copied_to_device() const { return to_device_; }  // bytes in Lane::to_device
  double copied_to_host() const { return to_host_; }      // bytes in Lane::to_host

  std::string describe() const override { return "dry"; }
  int threads() const override { return 1; }
  Buffer reserve(size_t bytes, const char* what) override;
  size_t total_memory() const override;  // more than any device has: a plan says how much it takes, also where that does not fit
  size_t free_memory() const override { return total_memory(); }

  void copy(void*, const void*, size_t) override {}
  void fill_zero(Tensor) override {}
  bool on_device(const void*) const override;
  bool host_can_read() const override { return !gpu_; }
  Buffer reserve_pinned(size_t bytes, const char* what) override;
  void copy_beside(void* to, const void*, size_t bytes) override { (on_device(to) ? to_device_ : to_host_) += double(bytes); }

  void gemm(const Product&) override;
  bool drops_inside(std::span<const AdapterProduct>) const override;
  void adapters(std::span<const AdapterProduct>, Tensor x, Tensor room) override;
  void adapters_backward(std::span<const AdapterProduct>, Tensor x, Tensor room) override;
  void adapters_input_gradient(Tensor dx, std::span<const AdapterProduct>, Tensor room) override;
  void convert(Tensor, Tensor) override {}
  void add(Tensor, Tensor, Tensor) override {}
  void accumulate(Tensor, Tensor) override {}
  void add_bias(Tensor, Tensor) override {}
  void column_sum(Tensor, Tensor) override;
  void random_normal(Tensor, uint64_t, uint64_t, float) override {}
  void dropout(Tensor, Tensor, Tensor, uint64_t, float) override {}
  void embedding(Tensor, Tensor, Tensor) override {}
  void embedding_backward(Tensor, Tensor, Tensor) override;
  void gather_rows(Tensor, Tensor, Tensor) override {}
  void scatter_rows(Tensor, Tensor, Tensor) override {}
  void rmsnorm(Tensor, Tensor, Tensor, Tensor, float) override {}
  void rmsnorm_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool) override;
  void rope(Tensor, Tensor, Tensor, Tensor, bool) override {}
  void swiglu(Tensor, Tensor, Tensor) override {}
  void swiglu_backward(Tensor, Tensor, Tensor, Tensor, Tensor) override {}
  void attention(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) override {}
  void attention_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionShape) override;
  void cross_entropy(Tensor, Tensor, Tensor, Tensor, float) override {}
  void codebook4_encode(Tensor, Tensor, Tensor, const float*, int64_t) override {}
  void codebook4_decode(Tensor, Tensor, Tensor, const float*, int64_t) override {}
  void nested_decode(Tensor, Tensor, Tensor, Tensor, const float*) override {}
  void nested_encode(Tensor, Tensor, Tensor, float, const float*) override {}
  void adamw(Tensor, Tensor, Tensor, Tensor, Tensor, const AdamwStep&) override {}
  void square_sums(Tensor, Tensor) override {}
  void largest(Tensor, Tensor) override {}
  void sum_units(Tensor, Tensor, int) override {}

 private:
  void need_scratch(size_t bytes);

  const bool gpu_;
  double to_device_ = 0, to_host_ = 0;
  size_t scratch_ = 0;
  Charge scratch_charge_;
};

}  // namespace tessera
