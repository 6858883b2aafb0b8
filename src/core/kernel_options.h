// Options of operations that take more than tensors; seen by every room between backend and train.
#pragma once
#include <cstdint>

namespace tessera {

struct AttentionShape {
  float scale = 1;     // multiplies q k^T
  int64_t window = 0;  // query i sees keys j with i - j < window; 0: no limit
};

struct AdamwStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;          // from 1
  float gradient_scale = 1;  // the clip coefficient
};

}  // namespace tessera
