#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "models/config.h"
#include "testing/golden.h"

namespace tessera {
namespace {

double largest_relative(const std::vector<float>& a, const std::vector<double>& b) {
  double worst = a.size() == b.size() ? 0 : 1e30;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) worst = std::max(worst, std::abs(a[i] / b[i] - 1));
  return worst;
}

// Every default, linear and llama3 table of transformers' rotary modules, far positions included.
TEST(Rope, TablesAreThoseOfTransformers) {
  NEEDS_SHARED();
  const auto facts = nlohmann::ordered_json::parse(shared_text("golden/models/rope/rope.json"));
  const GoldenFile golden("golden/models/rope/rope.safetensors");
  int compared = 0;
  for (const auto& c : facts.contains("cases") ? facts.at("cases") : facts) {
    const auto& rope = c.at("config").at("rope_parameters");
    ModelConfig config;
    config.rope.type = rope.value("rope_type", "");
    if (config.rope.type != "default" && config.rope.type != "linear" && config.rope.type != "llama3") continue;
    config.head_dim = c.at("head_dim").get<int64_t>();
    config.rope.theta = rope.at("rope_theta").get<double>();
    config.rope.factor = rope.value("factor", 1.0);
    config.rope.low_freq_factor = rope.value("low_freq_factor", 1.0), config.rope.high_freq_factor = rope.value("high_freq_factor", 4.0);
    config.rope.original_max_positions = rope.value("original_max_position_embeddings", int64_t(0));
    for (const auto& run : c.at("runs")) {
      const std::string name = run.at("tensors").get<std::string>();
      const RopeTables t = rope_tables(config, run.at("longest_position").get<int64_t>() + 1);
      EXPECT_LT(largest_relative(t.inv_freq, golden.doubles(name + ".inv_freq")), 1e-6) << name;
      const auto positions = golden.doubles(name + ".positions"), cos = golden.doubles(name + ".cos"), sin = golden.doubles(name + ".sin");
      const bool far = positions.back() > 10000;  // there the last bits of inv_freq (1e-6) move the angle itself
      for (size_t p = 0; p < positions.size(); ++p)
        for (int64_t i = 0; i < t.half; ++i) {
          const double angle_error = far ? 3e-7 * positions[p] * t.inv_freq[size_t(i)] : 0;
          const size_t mine = size_t(int64_t(positions[p]) * t.half + i), theirs = p * size_t(2 * t.half) + size_t(i);
          EXPECT_NEAR(t.cos[mine], cos[theirs], 1e-6 + angle_error) << name << " position " << positions[p];
          EXPECT_NEAR(t.sin[mine], sin[theirs], 1e-6 + angle_error) << name << " position " << positions[p];
        }
      ++compared;
    }
  }
  EXPECT_GE(compared, 7);
}

}  // namespace
}  // namespace tessera
