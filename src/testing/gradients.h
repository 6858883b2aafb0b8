// Gradient checks by central differences. For *_test.cpp only.
#pragma once
#include <functional>
#include <iosfwd>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"

namespace tessera {

// A backend row of a parametrised test, and the tolerance of its dtype.
struct DeviceRow {
  const char* device;  // "cpu"
  Dtype dtype;
  float tolerance;  // relative, L2 over a tensor
};
std::vector<DeviceRow> every_device();          // (cpu, f32), (cpu, bf16); device rows are added here and nowhere else
std::string row_name(const DeviceRow&);         // "cpu_f32", for INSTANTIATE_TEST_SUITE_P
void PrintTo(const DeviceRow&, std::ostream*);  // how GoogleTest shows it

// Owns the memory of a test's tensors.
class TestMemory {
 public:
  TestMemory(Backend& backend, size_t bytes = size_t(64) << 20);
  ~TestMemory();
  Tensor zeros(Dtype, Shape);
  Tensor random(Dtype, Shape, uint64_t seed, float scale = 1);  // normal, rounded to dtype
  Tensor ids(Shape, uint64_t seed, int32_t below);              // i32 in [0, below)
  Tensor of(Dtype, Shape, const std::vector<double>& values);   // converted
  Backend& backend() { return backend_; }

 private:
  struct Impl;
  Backend& backend_;
  std::unique_ptr<Impl> impl_;
};

std::vector<double> to_doubles(Tensor);                                                         // any floating or integer dtype
double relative_error(const std::vector<double>& a, const std::vector<double>& b);              // L2 of the difference / L2 of b
void expect_close(Tensor a, const std::vector<double>& b, double tolerance, const char* what);  // relative, L2

// Checks `backward` against central differences of `forward` in f32.
//   inputs: the tensors to be differentiated (f32); gradients: where backward leaves d loss / d input, f32, same order.
//   forward() computes `out` from the inputs; the loss is sum(out * dout) with a random dout that is given to backward(dout).
// Differences are taken with step h on up to `probes` seeded elements of each input, loss summed in double. Gradients are zeroed before
// the one call of backward, which may overwrite dout.
struct GradientCheck {
  std::vector<Tensor> inputs, gradients;
  Tensor out;
  std::function<void()> forward;
  std::function<void(Tensor dout)> backward;
  float h = 1e-2f;
  double tolerance = 2e-3;  // on the L2 norm of the probed differences
  int probes = 24;
};
void expect_gradients(const GradientCheck&, TestMemory&, uint64_t seed = 1);

}  // namespace tessera
