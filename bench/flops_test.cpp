#include "bench/flops.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace tessera {
namespace {

// TESSERA_SHAPES is given by the build; in a bundle, which lies elsewhere, by the environment.
ModelConfig shape(const char* name) {
  const char* given = std::getenv("TESSERA_SHAPES");
  return read_model_config(std::string(given ? given : TESSERA_SHAPES) + "/" + name);
}

double gigaflops(const char* name, StepKind kind) { return training_flops(shape(name), kind) * 1e-9; }

TEST(Flops, AreTheWeightsOfAKnownModelTwice) {
  // SmolLM-135M: 134.5 M parameters, of which 30 layers x 2 norms x 576 and the last norm are no matrices; embedding and head are one.
  EXPECT_EQ(forward_flops(shape("135m")), 2.0 * double(shape("135m").parameters() - 61 * 576));
}

TEST(Flops, OfAStep) {
  EXPECT_NEAR(gigaflops("135m", {.full = false, .recompute = true}), 0.750, 0.0005);
  EXPECT_NEAR(gigaflops("135m", {.full = false, .recompute = false}), 0.538, 0.0005);
  EXPECT_NEAR(gigaflops("135m", {.full = true, .recompute = true}), 1.019, 0.0005);
  EXPECT_NEAR(gigaflops("1b", {.full = false, .recompute = true}), 6.89, 0.005);
  EXPECT_NEAR(gigaflops("1b", {.full = false, .recompute = false}), 4.94, 0.005);
  EXPECT_NEAR(gigaflops("15m", {.full = false, .recompute = true}), 0.0727, 0.00005);
}

}  // namespace
}  // namespace tessera
