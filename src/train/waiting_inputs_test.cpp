#include "train/waiting_inputs.h"

#include <gtest/gtest.h>

#include "core/text.h"
#include "testing/test_backend.h"

namespace tessera {
namespace {

constexpr size_t floats = 64, bytes = floats * sizeof(float);

// A pass with hardly any work between the copies: every layer's input comes back as it was, whatever the order of the lanes.
void check_passes(Backend& backend, int layers) {
  SCOPED_TRACE(str(layers, " layers"));
  const Buffer pair = backend.reserve(2 * bytes, "test"), formed = backend.reserve(size_t(layers) * bytes, "test"),
               seen = backend.reserve(size_t(layers) * bytes, "test");
  const auto of = [&](const Buffer& b, int i) { return Tensor{b.data() + size_t(i) * bytes, Dtype::f32, {int64_t(floats)}, &backend}; };
  std::vector<float> values;
  for (size_t i = 0; i < size_t(layers) * floats; ++i) values.push_back(float(i));
  backend.copy(formed.data(), values.data(), values.size() * sizeof(float));
  WaitingInputs inputs(backend, layers, bytes);
  for (int pass = 0; pass < 3; ++pass) {
    inputs.begin(of(pair, 0), of(pair, 1));
    for (int l = 0; l < layers; ++l) {
      backend.copy(inputs.place(l).data, of(formed, l).data, bytes);
      inputs.send(l);
    }
    for (int l = layers - 1; l >= 0; --l) {
      backend.copy(of(seen, l).data, inputs.take(l).data, bytes);
      if (l > 0) inputs.fetch(l - 1);
    }
    std::vector<float> back(values.size());
    backend.copy(back.data(), seen.data(), back.size() * sizeof(float));
    EXPECT_EQ(back, values);
    backend.fill_zero({seen.data(), Dtype::f32, {int64_t(back.size())}, &backend});
  }
}

TEST(WaitingInputs, ComeBackAsTheyWere) {
  for (const char* device : test_devices())
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      const auto backend = make_test_backend(device, 1, seed);
      for (const int layers : {1, 2, 3, 6}) check_passes(*backend, layers);
    }
}

// Two stand on the device; those of the other layers have room on the host.
TEST(WaitingInputs, HoldNoMoreThanTheyNeed) {
  const auto backend = make_test_backend("cuda_host", 1);
  const WaitingInputs inputs(*backend, 6, bytes);
  EXPECT_EQ(backend->host_ledger().used(), 4 * bytes);
  EXPECT_EQ(backend->ledger().used(), 0u);
}

}  // namespace
}  // namespace tessera
