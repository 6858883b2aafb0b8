// Optimizer: AdamW on the shards this rank owns. States are f32, beside the masters; created zero. Norm of the gradient and clipping over
// all ranks, the same bits on any number of them. Where the masters live on the host beside a device (Sharded), the states do, too, and the
// host updates both: gradients come from the device, and what it computes with goes back.
#pragma once
#include <vector>

#include "core/buffer.h"
#include "fsdp/sharded.h"
#include "models/model.h"

namespace tessera {

struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  bool decay_norms_and_biases = false;  // fsdp_qlora: true; Hugging Face and Tessera: false
  double max_grad_norm = 1;             // 0: no clipping
};

class Optimizer {
 public:
  Optimizer(const Model&, Sharded&, Backend&, OptimizerOptions);

  // Global L2 norm of the gradient sums; infinity when one of them is not finite. Collective.
  float gradient_norm();
  // Clips by `norm` and updates the masters and their compute copies in one pass. step counts from 1.
  void step(int64_t step, double lr, float norm);

  Tensor exp_avg(int unit) const;  // owned range, f32
  Tensor exp_avg_sq(int unit) const;
  size_t bytes() const;

 private:
  std::vector<Tensor> square_sums();
  bool on_host() const { return masters_home_ != &backend_; }
  Tensor on_host(Tensor there, Buffer& room);
  void update(int unit, AdamwStep);

  const Model& model_;
  Sharded& sharded_;
  OptimizerOptions options_;
  std::vector<Buffer> memory_;  // per unit: exp_avg then exp_avg_sq
  Backend& backend_;
  Backend* masters_home_;
  Buffer host_gradient_, host_copy_;  // of a unit, with the masters on the host
  Buffer norm_parts_;                 // of the sum of squares, on the device
};

}  // namespace tessera
