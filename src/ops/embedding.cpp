#include "ops/embedding.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {

void embedding(Tensor out, Tensor table, Tensor ids) {
  require(out.dtype == table.dtype && out.cols() == table.cols() && is_vector(ids, Dtype::i32, out.rows()), "embedding",
          "out (B, T, C), table (V, C) of one dtype, ids (B, T) i32", {out, table, ids});
  if (out.size()) out.home->embedding(out, table, ids);
}

void embedding_backward(Tensor dtable, Tensor dout, Tensor ids) {
  require(dtable.dtype == Dtype::f32 && computes_in(dout.dtype) && dtable.cols() == dout.cols() && is_vector(ids, Dtype::i32, dout.rows()),
          "embedding_backward", "dtable (V, C) f32, dout (B, T, C) f32 or bf16, ids (B, T) i32", {dtable, dout, ids});
  if (dout.size()) dout.home->embedding_backward(dtable, dout, ids);
}

void gather_rows(Tensor out, Tensor x, Tensor index) {
  require(out.dtype == x.dtype && out.cols() == x.cols() && is_vector(index, Dtype::i32, out.rows()), "gather_rows",
          "out (n, C), x (..., C) of one dtype, index (n) i32", {out, x, index});
  if (out.size()) out.home->gather_rows(out, x, index);
}

void scatter_rows(Tensor out, Tensor x, Tensor index) {
  require(out.dtype == x.dtype && out.cols() == x.cols() && is_vector(index, Dtype::i32, x.rows()), "scatter_rows",
          "out (..., C), x (n, C) of one dtype, index (n) i32", {out, x, index});
  if (out.size()) out.home->scatter_rows(out, x, index);
}

}  // namespace tessera
