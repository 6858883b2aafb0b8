#include "ops/swiglu.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

void swiglu(Tensor out, Tensor gate, Tensor up) {
  require(computes_in(gate.dtype) && same_kind(out, gate) && same_kind(up, gate), "swiglu", "out, gate, up of one shape, f32 or bf16",
          {out, gate, up});
  if (gate.size()) gate.home->swiglu(out, gate, up);
}

void swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  require(computes_in(gate.dtype) && same_kind(dgate, gate) && same_kind(dup, gate) && same_kind(dout, gate) && same_kind(up, gate),
          "swiglu_backward", "dgate, dup, dout, gate, up of one shape, f32 or bf16", {dgate, dup, dout, gate, up});
  if (gate.size()) gate.home->swiglu_backward(dgate, dup, dout, gate, up);
}

}  // namespace tessera
