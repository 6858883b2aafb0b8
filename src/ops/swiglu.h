// SwiGLU (Shazeer, 2020): out = silu(gate) * up.
#pragma once
#include "core/tensor.h"

namespace tessera {

void swiglu(Tensor out, Tensor gate, Tensor up);
void swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up);  // dgate may be gate, dup may be up

}  // namespace tessera
