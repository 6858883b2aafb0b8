#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/swiglu.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/simd.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t grain = 8192;  // elements in a piece of work

// exp(88) is below the largest float.
template <class D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> x) {
  const auto one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)))));
}

void forward(int threads, Tensor out, Tensor gate, Tensor up) {
  dispatch_float(gate.dtype, [&]<class T>() {
    parallel_chunks(threads, gate.size(), grain, [&](int64_t begin, int64_t end) {
      for_vectors(begin, end, [&](auto d, int64_t i) {
        const auto g = load(d, gate.as<T>() + i);
        store(hn::Mul(hn::Mul(g, sigmoid(d, g)), load(d, up.as<T>() + i)), d, out.as<T>() + i);
      });
    });
  });
}

// silu'(g) = s + g s (1 - s) with s = sigmoid(g).
void backward(int threads, Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  dispatch_float(gate.dtype, [&]<class T>() {
    parallel_chunks(threads, gate.size(), grain, [&](int64_t begin, int64_t end) {
      for_vectors(begin, end, [&](auto d, int64_t i) {
        const auto g = load(d, gate.as<T>() + i), u = load(d, up.as<T>() + i), dy = load(d, dout.as<T>() + i);
        const auto s = sigmoid(d, g), silu = hn::Mul(g, s);
        store(hn::Mul(dy, silu), d, dup.as<T>() + i);
        store(hn::Mul(hn::Mul(dy, u), hn::NegMulAdd(silu, s, hn::Add(s, silu))), d, dgate.as<T>() + i);
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
HWY_EXPORT(forward);
HWY_EXPORT(backward);
}  // namespace

void CpuBackend::swiglu(Tensor out, Tensor gate, Tensor up) { HWY_DYNAMIC_DISPATCH(forward)(threads_, out, gate, up); }

void CpuBackend::swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  HWY_DYNAMIC_DISPATCH(backward)(threads_, dgate, dup, dout, gate, up);
}

}  // namespace tessera
#endif
