// Sums of products: one after the other into c, by the library; or whole, by a kernel of our own, where c has few rows.
#include <algorithm>

#include "backend/cuda/adapters.h"
#include "backend/cuda/codebook4.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/gemm_parts.h"
#include "backend/device_scratch.h"

namespace tessera::CUDA_SIDE {
namespace {

int64_t depth(const Product& p, const Term& t) { return p.transpose_a ? t.a.rows() : t.a.cols(); }

// The terms that are not empty, narrow ones first. c is rounded after each term; what an adapter adds is small, and so is its rounding.
int in_order(const Term* (&terms)[Product::most_terms], const Product& p) {
  int count = 0;
  for (int i = 0; i < p.terms; ++i)
    if (depth(p, p.term[i]) > 0) terms[count++] = &p.term[i];
  std::stable_sort(terms, terms + count, [&](const Term* a, const Term* b) { return depth(p, *a) < depth(p, *b); });
  return count;
}

// A weight format is a row here, with the kernel that writes its matrix out.
const void* values_of(Device& device, const Factor& f, Dtype dtype, std::byte* room) {
  if (f.is_codes()) {
    decode_codes4(device, {room, dtype, {f.rows(), f.cols()}, nullptr}, f.codes);
    return room;
  }
  return f.dense.data;
}

bool in_packs(Tensor t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; }

// How many of the first terms, if more than one, are adapters' gradients of one input: t a with narrow t. They become `narrow`.
int narrow_terms(AdapterProduct (&narrow)[AdapterProduct::most], const Product& p, const Term* const* terms, int count) {
  int n = 0;
  const bool packs = !p.transpose_a && !p.transpose_b && in_packs(p.c) && in_packs(p.addend);
  while (packs && n < std::min(count, AdapterProduct::most) && !terms[n]->b.is_codes()) {
    narrow[n] = {terms[n]->a, terms[n]->b.dense, {}, 1, {}};
    if (!joins_adapters({narrow, size_t(n + 1)})) break;
    ++n;
  }
  return n > 1 ? n : 0;
}

bool same_place(Tensor a, Tensor b) { return a.data == b.data; }

}  // namespace

void CudaBackend::gemm(const Product& p) {
  if (p.c.size() == 0) return;
  if (is_fused_product(p)) return fused_product(*device_, p);
  const Term* terms[Product::most_terms];
  const int count = in_order(terms, p);
  const bool addend_is_c = same_place(p.addend, p.c);
  const bool takes_addend = !p.accumulate && !addend_is_c && !p.addend.empty() && p.addend.dtype == p.c.dtype && count > 0;
  Matmul w;
  w.shape = {p.c.rows(), p.c.cols(), 0, p.transpose_a, p.transpose_b, p.term[0].a.dtype, p.c.dtype};
  w.c = p.c.data, w.alpha = p.alpha, w.beta = float(p.accumulate) + float(addend_is_c || takes_addend);
  w.add = takes_addend ? p.addend.data : p.c.data;
  AdapterProduct narrow[AdapterProduct::most];
  const int joined = narrow_terms(narrow, p, terms, count);
  const bool takes_bias = count > joined && CUDA_SIDE::takes_bias(w.shape) && in_packs(p.bias);
  if (count == 0 && w.beta == 0) fill_zero(p.c);
  if (count > joined && !matmuls_) matmuls_ = open_matmuls();
  std::byte* const room = scratch(product_scratch(p));
  if (joined) {
    adapters_sum(*device_, p.c, {narrow, size_t(joined)}, p.alpha, w.beta, w.add);
    w.beta = 1, w.add = p.c.data;
  }
  for (int i = joined; i < count; ++i) {
    w.shape.k = depth(p, *terms[i]);
    w.a = terms[i]->a.data, w.b = values_of(*device_, terms[i]->b, w.shape.in, room + matmul_workspace);
    if (i == count - 1 && takes_bias) w.bias = p.bias.data;
    matmul(*device_, *matmuls_, w, room);
    w.beta = 1, w.add = p.c.data;
  }
  add_to_product(*device_, p.c, takes_bias ? Tensor() : p.bias, takes_addend || addend_is_c ? Tensor() : p.addend);
}

}  // namespace tessera::CUDA_SIDE
