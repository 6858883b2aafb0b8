#include <gtest/gtest.h>

#include "backend/backend.h"
#include "backend/cpu/targets.h"
#include "hwy/highway.h"
#include "testing/gradients.h"

namespace tessera {
namespace {

TEST(DropoutTargets, SameBits) {
  const auto backend = make_backend("cpu", 1);
  TestMemory memory(*backend);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor x = memory.random(dtype, {2, 33, 97}, 1), row_keys = memory.of(Dtype::i64, {2}, {-3, 1e12});
    std::vector<double> best;
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(target);
      const Tensor out = memory.zeros(dtype, x.shape);
      backend->dropout(out, x, row_keys, 0xfedcba9876543210ull, 0.3f);
      if (best.empty()) best = to_doubles(out);
      EXPECT_EQ(to_doubles(out), best) << hwy::TargetName(target);
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().DeInit();
  }
}

}  // namespace
}  // namespace tessera
