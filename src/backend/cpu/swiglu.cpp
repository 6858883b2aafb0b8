#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/swiglu.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/exp-inl.h"
#include "backend/cpu/map-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t grain = 2048;  // elements in a piece of work
constexpr int64_t cost = 32;     // of an element, for worth_threads

// 1 + e^-x. e^88 is below the largest float.
template <class D, class V>
HWY_INLINE V one_plus_exp_minus(D d, V x) {
  return hn::Add(hn::Set(d, 1.0f), exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f))));
}

template <class T>
HWY_FLATTEN void forward_piece(T* out, const T* gate, const T* up, int64_t n) {
  const auto product = [](auto d, auto g, auto u) { return hn::Mul(hn::Div(g, one_plus_exp_minus(d, g)), u); };
  map(n, out, product, gate, up);
}

// silu'(g) = s + g s (1 - s) with s = sigmoid(g).
template <class T>
HWY_FLATTEN void backward_piece(T* dgate, T* dup, const T* dout, const T* gate, const T* up, int64_t n) {
  const auto gradients = [](auto d, auto dy, auto g, auto u) {
    const auto s = hn::Div(hn::Set(d, 1.0f), one_plus_exp_minus(d, g)), silu = hn::Mul(g, s);
    const auto slope = hn::NegMulAdd(silu, s, hn::Add(s, silu));
    return Two<hn::Vec<decltype(d)>>{hn::Mul(hn::Mul(dy, u), slope), hn::Mul(dy, silu)};
  };
  map(n, dgate, dup, gradients, dout, gate, up);
}

void forward(int threads, Tensor out, Tensor gate, Tensor up) {
  dispatch_float(gate.dtype, [&]<class T>() {
    parallel_chunks(worth_threads(threads, cost * gate.size()), gate.size(), grain, [&](int64_t begin, int64_t end) {
      forward_piece(out.as<T>() + begin, gate.as<T>() + begin, up.as<T>() + begin, end - begin);
    });
  });
}

void backward(int threads, Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  dispatch_float(gate.dtype, [&]<class T>() {
    parallel_chunks(worth_threads(threads, cost * gate.size()), gate.size(), grain, [&](int64_t i, int64_t end) {
      backward_piece(dgate.as<T>() + i, dup.as<T>() + i, dout.as<T>() + i, gate.as<T>() + i, up.as<T>() + i, end - i);
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
