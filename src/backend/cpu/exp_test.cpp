// exp of exp-inl.h against std::exp, on every instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/exp_test.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/exp-inl.h"
#include "backend/cpu/map-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
HWY_FLATTEN void exp_of(float* out, const float* x, int64_t n) {
  const auto f = [](auto d, auto v) { return exp(d, v); };
  map(n, out, f, x);
}
}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(exp_of);

std::vector<float> exps(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  HWY_DYNAMIC_DISPATCH(exp_of)(out.data(), x.data(), int64_t(x.size()));
  return out;
}

void expect_units(float begin, float end, double units) {
  std::vector<float> x;
  for (int i = 0; i < 200003; ++i) x.push_back(begin + (end - begin) * float(i) / 200003);
  const std::vector<float> y = exps(x);
  double most = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(double(x[i]));
    const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
    most = std::max(most, std::abs(double(y[i]) - exact) / unit);
  }
  EXPECT_LE(most, units) << begin << " to " << end;
}

void expect_special() {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> y = exps({0, -88.1f, -1000, -infinity, std::nanf("")});
  EXPECT_EQ(y[0], 1);
  for (const size_t i : {1, 2, 3}) EXPECT_EQ(y[i], 0);
  EXPECT_TRUE(std::isnan(y[4]));
}

TEST(Exp, StaysNearTheExactOne) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    expect_units(-20, 20, 1.5);
    expect_units(-40, 40, 2.5);
    expect_units(-87, 88, 5);
    expect_special();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace
}  // namespace tessera
#endif
