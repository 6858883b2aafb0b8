// AdamW. Order of operations: torch.optim.AdamW, foreach=False; no fused multiply-add, so every instruction set gives the same bits.
#include <cmath>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/adamw.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {

// With `copies` also copy = value.
template <bool copies>
void step_range(float* value, float* m, float* v, const float* gradient, Bf16* copy, const AdamwStep& s, int64_t begin, int64_t end) {
  const double beta1 = s.beta1, beta2 = s.beta2;
  const float decay = float(1 - double(s.lr) * s.weight_decay);
  const float step = float(-(s.lr / (1 - std::pow(beta1, double(s.step)))));
  const float root2 = float(std::sqrt(1 - std::pow(beta2, double(s.step))));
  const float take1 = float(1 - beta1), keep1 = 1 - take1, take2 = float(1 - beta2), keep2 = float(s.beta2);
  for_vectors(begin, end, [&](auto d, int64_t i) {
    const auto c = [&](float x) { return hn::Set(d, x); };
    const auto g = hn::Mul(load(d, gradient + i), c(s.gradient_scale)), old = load(d, m + i), difference = hn::Sub(g, old);
    // torch.lerp starts from the nearer end
    const auto mean = take1 < 0.5f ? hn::Add(old, hn::Mul(c(take1), difference)) : hn::Sub(g, hn::Mul(difference, c(keep1)));
    const auto square = hn::Add(hn::Mul(load(d, v + i), c(keep2)), hn::Mul(hn::Mul(c(take2), g), g));
    const auto below = hn::Add(hn::Div(hn::Sqrt(square), c(root2)), c(s.eps));
    store(mean, d, m + i);
    store(square, d, v + i);
    const auto next = hn::Add(hn::Mul(load(d, value + i), c(decay)), hn::Div(hn::Mul(c(step), mean), below));
    store(next, d, value + i);
    if constexpr (copies) store(next, d, copy + i);
  });
}

void adamw_range(float* value, float* m, float* v, const float* gradient, Bf16* copy, const AdamwStep& s, int64_t begin, int64_t end) {
  (copy ? step_range<true> : step_range<false>)(value, m, v, gradient, copy, s, begin, end);
}

// Eight partial sums, whatever the width of the vectors; no fused multiply-add.
void square_sums_range(double* sums, const float* x, int64_t n, int64_t begin, int64_t end) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  constexpr int64_t lanes = hn::MaxLanes(d), vectors = 8 / lanes;
  HWY_ALIGN double part[8];
  for (int64_t b = begin; b < end; ++b) {
    const float* block = x + b * 64;
    const int64_t count = std::min<int64_t>(64, n - b * 64);
    for (int64_t v = 0; v < vectors; ++v) {
      auto sum = hn::Zero(d);
      for (int64_t i = v * lanes; i < count / 8 * 8; i += 8) {
        const auto wide = hn::PromoteTo(d, hn::LoadU(df, block + i));
        sum = hn::Add(sum, hn::Mul(wide, wide));
      }
      hn::Store(sum, d, part + v * lanes);
    }
    for (int64_t i = count / 8 * 8; i < count; ++i) part[i % 8] += double(block[i]) * block[i];
    sums[b] = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(adamw_range);
HWY_EXPORT(square_sums_range);
constexpr int64_t grain = 1 << 14;
}  // namespace

void CpuBackend::adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep& s) {
  parallel_chunks(threads_, value.size(), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(adamw_range)
    (value.as<float>(), m.as<float>(), v.as<float>(), gradient.as<const float>(), copy.as<Bf16>(), s, begin, end);
  });
}

void CpuBackend::square_sums(Tensor sums, Tensor x) {
  parallel_chunks(threads_, sums.size(), grain / 64, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(square_sums_range)(sums.as<double>(), x.as<const float>(), x.size(), begin, end);
  });
}

}  // namespace tessera
#endif
