#include "backend/device_scratch.h"

#include <algorithm>

namespace tessera {
namespace {

constexpr int64_t most_fused_width = 128;  // of the narrow matrix
constexpr int64_t most_joined_rank = 64;

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

bool joins_adapters(std::span<const AdapterProduct> all) {
  if (all.empty() || all.size() > AdapterProduct::most) return false;
  const int64_t r = all[0].a.rows(), k = all[0].a.cols();
  if (r == 0 || r % 8 || r > most_joined_rank || k % 8) return false;
  return std::all_of(all.begin(), all.end(),
                     [&](const AdapterProduct& p) { return p.a.rows() == r && size_of(p.a.dtype) == 2 && aligned(p.a) && aligned(p.t); });
}

namespace {

constexpr int64_t enough_blocks = 256;  // of threads

// So many that all blocks together are enough, each with at least `least` of what is cut.
int64_t pieces_of(int64_t size, int64_t least, int64_t blocks) {
  return std::max<int64_t>(1, std::min(size / least, (enough_blocks + blocks - 1) / std::max<int64_t>(1, blocks)));
}

}  // namespace

int64_t adapter_pieces(int64_t m, int64_t k) { return pieces_of(k, 512, (m + adapter_rows - 1) / adapter_rows); }
int64_t adapter_backward_pieces(int64_t m, int64_t k) { return pieces_of(m, 512, (k + adapter_cols - 1) / adapter_cols); }

size_t adapter_scratch(std::span<const AdapterProduct> all) {
  const int64_t m = all[0].t.rows(), r = all[0].a.rows(), k = all[0].a.cols();
  return size_t(adapter_pieces(m, k) * int64_t(all.size()) * m * r) * sizeof(float);
}

size_t adapter_backward_scratch(std::span<const AdapterProduct> all) {
  const int64_t m = all[0].t.rows(), r = all[0].a.rows(), k = all[0].a.cols();
  return size_t(adapter_backward_pieces(m, k) * int64_t(all.size()) * r * k) * sizeof(float);
}

}  // namespace tessera
