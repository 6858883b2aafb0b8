#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/cross_entropy.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/exp-inl.h"
#include "backend/cpu/map-inl.h"
#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t chunk = 2048;  // elements whose shares are summed while they are in the nearest cache

constexpr auto itself = [](auto, auto v) { return v; };

template <class T>
HWY_FLATTEN float largest(const T* x, int64_t n) {
  return reduce<Largest>(n, itself, x);
}

// shares = e^(x - most), and their sum. The shares of all n are kept, or those of the last chunk.
template <class T>
HWY_FLATTEN float sum_of_shares(float* shares, bool keep, const T* x, int64_t n, float most) {
  const auto share = [most](auto d, auto v) { return exp(d, hn::Sub(v, hn::Set(d, most))); };
  float sum = 0;
  for (int64_t i = 0; i < n; i += chunk) {
    float* const at = keep ? shares + i : shares;
    const int64_t count = std::min(chunk, n - i);
    map(count, at, share, x + i);
    sum += reduce<Sum>(count, itself, at);
  }
  return sum;
}

template <class G>
HWY_FLATTEN void write_gradient(G* gradient, const float* shares, int64_t n, float weight) {
  const auto weighted = [weight](auto d, auto v) { return hn::Mul(v, hn::Set(d, weight)); };
  map(n, gradient, weighted, shares);
}

// Memory of the thread.
float* room_for_shares(int64_t n) {
  thread_local hwy::AlignedFreeUniquePtr<float[]> memory;
  thread_local int64_t room = 0;
  if (room < n) memory = hwy::AllocateAligned<float>(size_t(room = n));
  return memory.get();
}

template <class T, class G>
float one_row(G* gradient, const T* x, int64_t n, int64_t label, float scale) {
  const float most = largest(x, n), given = x[label];
  float* const shares = room_for_shares(gradient ? n : std::min(n, chunk));
  const float sum = sum_of_shares(shares, gradient != nullptr, x, n, most);
  if (gradient) {
    write_gradient(gradient, shares, n, scale / sum);
    gradient[label] = G((std::exp(given - most) / sum - 1) * scale);
  }
  return std::log(sum) + (most - given);
}

void cross_entropy(int threads, Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) {
  const int64_t cols = logits.cols();
  dispatch_float(logits.dtype, [&]<class T>() {
    dispatch_float(gradient.empty() ? logits.dtype : gradient.dtype, [&]<class G>() {
      parallel_chunks(worth_threads(threads, 8 * logits.size()), logits.rows(), 1, [&](int64_t r, int64_t) {
        G* out = gradient.empty() ? nullptr : gradient.as<G>() + r * cols;
        loss.as<float>()[r] = one_row(out, logits.as<T>() + r * cols, cols, labels.as<int32_t>()[r], scale);
      });
    });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(cross_entropy);
}  // namespace

void CpuBackend::cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) {
  HWY_DYNAMIC_DISPATCH(cross_entropy)(threads_, loss, gradient, logits, labels, scale);
}

}  // namespace tessera
#endif
