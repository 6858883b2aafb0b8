#include "ops/adapters.h"

#include "backend/backend.h"
#include "ops/check.h"

namespace tessera {
namespace {

void check(const char* operation, std::span<const AdapterProduct> all, Tensor x, Tensor room, bool gradient) {
  bool drops = false;
  for (const AdapterProduct& p : all) {
    const int64_t r = p.a.rows(), B = p.drop.row_keys.size();
    const bool sizes = p.t.rows() == x.rows() && p.t.cols() == r && p.a.cols() == x.cols();
    const bool dtypes = computes_in(x.dtype) && p.t.dtype == x.dtype && p.a.dtype == x.dtype;
    const bool da = !gradient || (p.da.dtype == Dtype::f32 && p.da.rows() == r && p.da.cols() == x.cols());
    const bool drop = p.drop.p == 0 || (p.drop.row_keys.dtype == Dtype::i64 && B > 0 && x.rows() % B == 0 && p.drop.p > 0 && p.drop.p < 1);
    require(sizes && dtypes && da && drop, operation, "x (m, k), t (m, r), a (r, k) of one dtype, da (r, k) f32, row keys (B) of m rows",
            {x, p.t, p.a, p.da, p.drop.row_keys});
    drops = drops || p.drop.p > 0;
  }
  require(all.size() <= AdapterProduct::most && (!drops || drops_inside(all) || same_kind(room, x)), operation,
          "at most 4 adapters, and room as x where dropout needs it", {x, room});
}

}  // namespace

bool drops_inside(std::span<const AdapterProduct> all) { return !all.empty() && all[0].t.home->drops_inside(all); }

void adapters(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  check("adapters", all, x, room, false);
  if (!all.empty()) x.home->adapters(all, x, room);
}

void adapters_backward(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  check("adapters_backward", all, x, room, true);
  if (!all.empty()) x.home->adapters_backward(all, x, room);
}

void adapters_input_gradient(Tensor dx, std::span<const AdapterProduct> all, Tensor room) {
  check("adapters_input_gradient", all, dx, room, false);
  if (!all.empty()) dx.home->adapters_input_gradient(dx, all, room);
}

}  // namespace tessera
