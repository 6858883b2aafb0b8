#include "backend/device_scratch.h"

#include <algorithm>

namespace tessera {
namespace {

constexpr int64_t most_fused_width = 128;  // of the narrow matrix

bool aligned(Tensor t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; }

bool fits_codes(const Term& t) {
  const Codes4& w = t.b.codes;
  return w.cols > 0 && w.cols % 32 == 0 && w.block >= 32 && (w.block & (w.block - 1)) == 0 && aligned(t.a) && aligned(w.codes);
}

}  // namespace

bool is_fused_product(const Product& p) {
  if (p.c.rows() > most_fused_rows || p.transpose_a || !p.transpose_b || p.terms == 0 || p.terms > 2) return false;
  int codes = 0;
  for (int i = 0; i < p.terms; ++i) {
    const Term& t = p.term[i];
    if (size_of(t.a.dtype) != 2 || (t.b.is_codes() ? !fits_codes(t) : t.a.cols() > most_fused_width)) return false;
    codes += t.b.is_codes();
  }
  return codes == 1;
}

size_t product_scratch(const Product& p) {
  if (p.c.size() == 0 || is_fused_product(p)) return 0;
  size_t decoded = 0;
  bool any = false;
  for (int i = 0; i < p.terms; ++i) {
    const Term& t = p.term[i];
    if (t.a.size() == 0) continue;
    any = true;
    if (t.b.is_codes()) decoded = std::max(decoded, size_t(t.b.rows() * t.b.cols()) * size_of(t.a.dtype));
  }
  return any ? matmul_workspace + decoded : 0;
}

}  // namespace tessera
