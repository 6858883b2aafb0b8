#include "backend/backend.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <cstdint>

#include "core/error.h"
#include "testing/gradients.h"

namespace tessera {
namespace {

std::string error_of(std::string_view device) {
  try {
    make_backend(device, 1);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(MakeBackend, NamesWhatItCannotMake) {
  const std::string without_gpu = built_with_cuda() ? "device cuda: no GPU can be used" : "device cuda: this binary was built without CUDA";
  if (cuda_devices() == 0) {
    EXPECT_EQ(error_of("cuda").find(without_gpu), 0u) << error_of("cuda");
  }
  EXPECT_NE(error_of("tpu").find("\"tpu\""), std::string::npos) << error_of("tpu");
}

TEST(MakeBackend, ZeroThreadsAreTheUsableCores) {
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  EXPECT_EQ(make_backend("cpu", 0)->threads(), CPU_COUNT(&set));
  EXPECT_EQ(make_backend("cpu", 3)->threads(), 3);
  const std::string text = make_backend("cpu", 3)->describe();
  EXPECT_EQ(text.substr(0, 5), "cpu, ");
  EXPECT_EQ(text.substr(text.size() - 9), "3 threads");
}

// More than the machine has can be reserved, because nothing is committed before it is touched.
TEST(CpuMemory, IsZeroAlignedAndCommittedOnTouch) {
  const auto backend = make_backend("cpu", 2);
  EXPECT_GT(backend->total_memory(), size_t(1) << 28);
  const Buffer large = backend->allocate(2 * backend->total_memory(), "test");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large.data()) % 4096, 0u);
  EXPECT_EQ(large.data()[large.bytes() - 1], std::byte(0));
  EXPECT_EQ(backend->allocate(0, "nothing").bytes() <= 4096, true);
  EXPECT_THROW(backend->allocate(size_t(1) << 60, "too much"), Error);
}

TEST(CpuMemory, CopiesAndFills) {
  const auto backend = make_backend("cpu", 2);
  for (const size_t n : {size_t(0), size_t(1), size_t(33), (size_t(5) << 20) + 7}) {
    Buffer a = backend->allocate(n + 1, "a"), b = backend->allocate(n + 1, "b");
    for (size_t i = 0; i <= n; ++i) a.data()[i] = std::byte(i * 7 + i / 256 + 1);
    b.data()[n] = std::byte(99);
    backend->copy(b.data(), a.data(), n);
    EXPECT_TRUE(std::equal(a.data(), a.data() + n, b.data()));
    EXPECT_EQ(b.data()[n], std::byte(99));
    backend->fill_zero(Tensor{b.data(), Dtype::u8, {int64_t(n)}, backend.get()});
    EXPECT_TRUE(std::all_of(b.data(), b.data() + n, [](std::byte v) { return v == std::byte(0); }));
    EXPECT_EQ(b.data()[n], std::byte(99));
  }
}

// The checker itself: it accepts a right gradient and sees a wrong one.
TEST(ExpectGradients, SeesAWrongGradient) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  const Tensor x = memory.random(Dtype::f32, {33}, 1), y = memory.zeros(Dtype::f32, {33}), dx = memory.zeros(Dtype::f32, {33});
  const auto check = [&](float factor) {
    expect_gradients({.inputs = {x},
                      .gradients = {dx},
                      .out = y,
                      .forward =
                          [&] {
                            for (int i = 0; i < 33; ++i) y.as<float>()[i] = x.as<float>()[i] * x.as<float>()[i];
                          },
                      .backward =
                          [&](Tensor dy) {
                            for (int i = 0; i < 33; ++i) dx.as<float>()[i] = factor * dy.as<float>()[i] * x.as<float>()[i];
                          }},
                     memory);
  };
  check(2);
  EXPECT_NONFATAL_FAILURE(check(2.02f), "gradient of input 0");
}

}  // namespace
}  // namespace tessera
