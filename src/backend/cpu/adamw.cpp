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

void adamw_range(float* value, float* m, float* v, const float* gradient, const AdamwStep& s, int64_t begin, int64_t end) {
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
    store(hn::Add(hn::Mul(load(d, value + i), c(decay)), hn::Div(hn::Mul(c(step), mean), below)), d, value + i);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(adamw_range);
constexpr int64_t grain = 1 << 14;
}  // namespace

void CpuBackend::adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, const AdamwStep& s) {
  parallel_chunks(threads_, value.size(), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(adamw_range)(value.as<float>(), m.as<float>(), v.as<float>(), gradient.as<const float>(), s, begin, end);
  });
}

void CpuBackend::square_sums(Tensor sums, Tensor x) {
  const int64_t n = x.size();
  parallel_chunks(threads_, sums.size(), grain / 64, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const float* block = x.as<const float>() + b * 64;
      const int64_t count = std::min<int64_t>(64, n - b * 64);
      double part[8] = {};
      for (int64_t i = 0; i + 8 <= count; i += 8)
        for (int k = 0; k < 8; ++k) part[k] += double(block[i + k]) * block[i + k];
      for (int64_t i = count / 8 * 8; i < count; ++i) part[i % 8] += double(block[i]) * block[i];
      sums.as<double>()[b] = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
    }
  });
}

}  // namespace tessera
#endif
