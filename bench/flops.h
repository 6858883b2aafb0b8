// Floating-point operations of a token, by the sizes of a model: the work that was asked for, by one rule for every program. Products with
// weights, the head included; adapters, attention scores and everything elementwise are not counted. A recompute counts as a whole forward
// pass of the layers, also where a program forms less of it again.
#pragma once
#include "models/config.h"

namespace tessera {

struct StepKind {
  bool full = false;       // every weight trains: its gradient is one more product
  bool recompute = false;  // gradient checkpointing: the layers, not the head, run forward twice
};

double forward_flops(const ModelConfig&);             // of one token: 2 per weight of layers and head
double training_flops(const ModelConfig&, StepKind);  // forward, recompute, backward

}  // namespace tessera
