// Products on the host, by the CPU backend in f32.
#include <algorithm>
#include <cassert>
#include <vector>

#include "backend/cpu/cpu.h"
#include "backend/cuda/matmul.h"
#include "backend/cuda_host/submit.h"

namespace tessera::cuda_host {

struct Matmuls {};
void CloseMatmuls::operator()(Matmuls* m) const { std::default_delete<Matmuls>()(m); }
OpenMatmuls open_matmuls() { return OpenMatmuls(std::make_unique<Matmuls>().release()); }

namespace {

template <class F>
decltype(auto) dispatch(Dtype dtype, F&& f) {
  if (dtype == Dtype::f16) return f.template operator()<F16>();
  return dispatch_float(dtype, f);
}

std::vector<float> as_floats(const void* data, Dtype dtype, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  dispatch(dtype, [&]<class T>() { std::copy_n(static_cast<const T*>(data), count, out.begin()); });
  return out;
}

Tensor matrix(std::vector<float>& values, int64_t rows, int64_t cols) { return {values.data(), Dtype::f32, {rows, cols}, nullptr}; }

void compute(const Matmul& w) {
  const MatmulShape& s = w.shape;
  std::vector<float> a = as_floats(w.a, s.in, s.m * s.k), b = as_floats(w.b, s.in, s.k * s.n), sums(static_cast<size_t>(s.m * s.n));
  Product p;
  p.c = matrix(sums, s.m, s.n);
  p.transpose_a = s.transpose_a, p.transpose_b = s.transpose_b;
  p.add(s.transpose_a ? matrix(a, s.k, s.m) : matrix(a, s.m, s.k), s.transpose_b ? matrix(b, s.n, s.k) : matrix(b, s.k, s.n));
  CpuBackend(1).gemm(p);
  dispatch(s.out, [&]<class C>() {
    const auto* const add = static_cast<const C*>(w.add);
    const auto* const bias = static_cast<const C*>(w.bias);
    for (size_t i = 0; i < sums.size(); ++i) {
      float v = w.alpha * sums[i];
      if (w.beta != 0) v += w.beta * float(add[i]);
      if (bias) v += float(bias[i % size_t(s.n)]);
      static_cast<C*>(w.c)[i] = C(v);
    }
  });
}

}  // namespace

void matmul(Device& device, Matmuls&, const Matmul& w, void*) {
  assert(!w.bias || takes_bias(w.shape));
  submit(device, Lane::compute, [w] { compute(w); });
}

}  // namespace tessera::cuda_host
