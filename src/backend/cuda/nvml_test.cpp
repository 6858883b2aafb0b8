// What a device's overhead is said to be, by a NVML of ours.
#include "backend/cuda/nvml.h"

#include <gtest/gtest.h>

#include "backend/cuda/fake_nvml_test.h"
#include "backend/cuda/make.h"

namespace tessera {
namespace {

using cuda_host::GpuUse;
constexpr size_t MiB = size_t(1) << 20;

// 3 GiB are held when the process comes, 600 MiB by its context.
struct Opened {
  Opened() {
    nvml.used = 3000 * MiB;
    backend = cuda_host::make_cuda_backend(0, 1, 1, &library);
    nvml.used += 600 * MiB, nvml.processes = 1;
  }
  FakeNvml nvml;
  FakeNvml::Library library = FakeNvml::library();
  std::unique_ptr<Backend> backend;
};

TEST(Overhead, IsWhatTheGpuGainedBesideWhatWasReserved) {
  Opened o;
  EXPECT_EQ(o.backend->overhead().bytes, 600 * MiB);
  {
    const Buffer some = o.backend->reserve(100 * MiB, "test");
    o.nvml.used += 107 * MiB;  // of them 7 for the module of a kernel
    EXPECT_EQ(o.backend->overhead().bytes, 607 * MiB);
  }
  o.nvml.used -= 100 * MiB;
  const Overhead held = o.backend->overhead();
  EXPECT_EQ(held.bytes, 607 * MiB);
  EXPECT_EQ(held.unknown, "");
}

// Measuring takes memory for a moment: it is given back, and stands in no ledger.
TEST(Overhead, LeavesNothingBehind) {
  Opened o;
  const size_t free = o.backend->free_memory();
  o.backend->overhead();
  EXPECT_EQ(o.backend->free_memory(), free);
  EXPECT_EQ(o.backend->ledger().peak(), 0u);
}

TEST(Overhead, IsUnknownWhereOthersUseTheGpu) {
  Opened o;
  o.nvml.processes = 2, o.nvml.used += 5000 * MiB;
  EXPECT_EQ(o.backend->overhead().bytes, 0u);
  EXPECT_NE(o.backend->overhead().unknown.find("other processes"), std::string::npos);
  o.nvml.processes = 1;  // the same number, but not this process alone from the beginning
  const auto late = cuda_host::make_cuda_backend(0, 1, 1, &o.library);
  o.nvml.used += 600 * MiB;
  EXPECT_EQ(late->overhead().bytes, 0u);
}

// A driver that does not show processes, or an old one.
TEST(Overhead, IsKnownWhereProcessesAreNot) {
  Opened o;
  o.nvml.processes = 7, o.nvml.processes_result = 3;
  EXPECT_EQ(o.backend->overhead().bytes, 600 * MiB);
  o.library.processes = nullptr;
  EXPECT_EQ(o.backend->overhead().bytes, 600 * MiB);
}

TEST(Overhead, SaysWhyItIsUnknown) {
  FakeNvml nvml;
  const auto library = FakeNvml::library();
  const auto use = [&] { return cuda_host::gpu_use(library, "0000:01:00.0"); };
  const GpuUse before = use();
  FakeNvml::Library none;
  none.missing = "libnvidia-ml.so.1: cannot open shared object file";
  EXPECT_EQ(gained(cuda_host::gpu_use(none, "0000:01:00.0"), before, 0).unknown, none.missing);
  EXPECT_EQ(cuda_host::make_cuda_backend(0, 1, 1, &none)->overhead().unknown, none.missing);
  nvml.memory_result = 15;
  EXPECT_EQ(gained(before, use(), 0).unknown, "nvmlDeviceGetMemoryInfo of 0000:01:00.0: GPU is lost");
  nvml.find_result = 6;
  EXPECT_EQ(gained(before, use(), 0).unknown, "nvmlDeviceGetHandleByPciBusId of 0000:01:00.0: GPU is lost");
  nvml.memory_result = nvml.find_result = 0, nvml.used = 50 * MiB;
  EXPECT_EQ(gained(before, use(), 40 * MiB).bytes, 10 * MiB);
  EXPECT_EQ(gained(before, use(), 50 * MiB).bytes, 0u);
  EXPECT_NE(gained(before, use(), 50 * MiB).unknown, "");
}

// This machine's, whatever it has: usable, or it says what is missing.
TEST(Overhead, TheLibraryIsWholeOrMissing) {
  const auto& library = cuda_host::nvml();
  EXPECT_EQ(library.missing.empty(), library.init && library.error_text && library.find_gpu && library.memory);
  const Overhead held = cuda_host::make_cuda_backend(0, 1)->overhead();  // no GPU of any machine
  EXPECT_EQ(held.bytes, 0u);
  EXPECT_NE(held.unknown, "");
}

}  // namespace
}  // namespace tessera
