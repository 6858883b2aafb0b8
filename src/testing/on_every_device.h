// Tests that run once for each device and dtype. For *_test.cpp only:
//   struct Rope : OnEveryDevice {};
//   INSTANTIATE_TEST_SUITE_P(Devices, Rope, ::testing::ValuesIn(every_device()), case_name);
//   TEST_P(Rope, TurnsPairs) { ... memory, dtype, tolerance ... }
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "testing/gradients.h"
#include "testing/test_backend.h"

namespace tessera {

class OnEveryDevice : public ::testing::TestWithParam<DeviceRow> {
 protected:
  std::unique_ptr<Backend> backend = make_test_backend(GetParam().device, 2);
  TestMemory memory{*backend};
  Dtype dtype = GetParam().dtype;
  double tolerance = double(GetParam().tolerance);
};

// The same once for each device, for tests of one dtype; (..., ::testing::ValuesIn(test_devices()), device_name).
class OnEachDevice : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend = make_test_backend(GetParam(), 2);
  TestMemory memory{*backend};
};

inline std::string case_name(const ::testing::TestParamInfo<DeviceRow>& info) { return row_name(info.param); }
inline std::string device_name(const ::testing::TestParamInfo<const char*>& info) { return info.param; }

// `results` gives the same numbers, bit for bit, on backends of 1, 2 and 3 threads.
inline void expect_same_on_any_threads(const char* device, const std::function<std::vector<double>(TestMemory&)>& results) {
  std::vector<double> first;
  for (const int threads : {1, 2, 3}) {
    const std::unique_ptr<Backend> backend = make_test_backend(device, threads);
    TestMemory memory(*backend);
    const std::vector<double> now = results(memory);
    if (threads == 1) first = now;
    EXPECT_EQ(now, first) << threads << " threads";
  }
}

}  // namespace tessera
