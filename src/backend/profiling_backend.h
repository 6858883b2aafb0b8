// ProfilingBackend: a backend that passes every call on to the one it owns and records what was called, on which shapes, and for how long.
// Results are those of the owned backend, to the bit. Tensors made through it must have it as their home, so that what is done to them
// passes through it again; whoever is given this Backend& does that without knowing.
#pragma once
#include <memory>

#include "backend/backend.h"
#include "backend/profile.h"

namespace tessera {

class ProfilingBackend final : public Backend {
 public:
  ProfilingBackend(std::unique_ptr<Backend> owned, Profile& profile) : owned_(std::move(owned)), profile_(profile) {}
  std::string describe() const override { return owned_->describe(); }
  int threads() const override { return owned_->threads(); }

  Buffer reserve(size_t bytes, const char* what) override { return owned_->reserve(bytes, what); }
  Ledger& ledger() override { return owned_->ledger(); }
  Ledger& host_ledger() override { return owned_->host_ledger(); }
  size_t total_memory() const override { return owned_->total_memory(); }
  size_t free_memory() const override { return owned_->free_memory(); }
  Overhead overhead() override { return owned_->overhead(); }
  void copy(void* to, const void* from, size_t bytes) override;
  void fill_zero(Tensor) override;
  bool on_device(const void* p) const override { return owned_->on_device(p); }
  bool host_can_read() const override { return owned_->host_can_read(); }
  Buffer reserve_pinned(size_t bytes, const char* what) override { return owned_->reserve_pinned(bytes, what); }
  Buffer pin(void* data, size_t bytes, const char* what) override { return owned_->pin(data, bytes, what); }
  Moment now(Lane lane) override { return owned_->now(lane); }
  void wait(Lane lane, Moment m) override { owned_->wait(lane, m); }
  void copy_beside(void* to, const void* from, size_t bytes) override { owned_->copy_beside(to, from, bytes); }
  void finish() override { owned_->finish(); }
  void* native(Lane lane) override { return owned_->native(lane); }

  void gemm(const Product&) override;
  bool drops_inside(std::span<const AdapterProduct> all) const override { return owned_->drops_inside(all); }
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
  template <class Call>
  void timed(const Operation&, Call&&);

  std::unique_ptr<Backend> owned_;
  Profile& profile_;
};

// The best of several products and of several copies that fit no cache, through the backend itself.
ProfileLimits measure_limits(Backend&);
// Less of it, in a third of the time: products of one dtype, whose speed stands for both, and a copy.
ProfileLimits measure_limits(Backend&, Dtype);

// The backend itself, or, when this thread has a profile, one that records in it; the profile then knows its limits.
std::unique_ptr<Backend> profiled(std::unique_ptr<Backend>);

}  // namespace tessera
