#include "core/ledger.h"

#include <gtest/gtest.h>

#include "core/arena.h"

namespace tessera {
namespace {

size_t held(const std::vector<Ledger::Holder>& holders, const std::string& what) {
  for (const auto& h : holders)
    if (h.what == what) return h.bytes;
  return 0;
}

TEST(Ledger, PeaksArePerPhase) {
  Ledger ledger;
  const Charge weights(ledger, "weights", 100);
  ledger.enter("forward");
  { const Charge activations(ledger, "activations", 50); }
  ledger.enter("backward");
  const Charge gradients(ledger, "gradients", 20);
  const auto peaks = ledger.peaks();
  ASSERT_EQ(peaks.size(), 3u);
  EXPECT_EQ(peaks[0].bytes, 100u);
  EXPECT_EQ(peaks[1].bytes, 150u);
  EXPECT_EQ(held(peaks[1].holders, "activations"), 50u);
  EXPECT_EQ(peaks[2].bytes, 120u) << "what is held when a phase begins counts for it, what was given back does not";
  EXPECT_EQ(held(peaks[2].holders, "activations"), 0u);
  EXPECT_EQ(ledger.peak(), 150u);
  EXPECT_EQ(ledger.used(), 120u);
}

TEST(Ledger, APhaseEnteredAgainKeepsItsPeak) {
  Ledger ledger;
  ledger.enter("forward");
  { const Charge large(ledger, "scratch", 70); }
  ledger.enter("step");
  ledger.enter("forward");
  EXPECT_EQ(ledger.peaks()[1].bytes, 70u);
}

TEST(Ledger, ChargesMoveAndAreGivenBackOnce) {
  Ledger ledger;
  Charge a(ledger, "a", 8), b(ledger, "b", 4);
  Charge c = std::move(a);
  EXPECT_EQ(ledger.used(), 12u);
  b = Charge();
  EXPECT_EQ(ledger.used(), 8u);
  EXPECT_EQ(ledger.text(), "a 8 B");
}

TEST(Ledger, AnArenaStandsInItByLabel) {
  alignas(64) static std::byte memory[4096];
  Ledger ledger;
  Arena arena(nullptr, Buffer(memory, sizeof memory, [](void*, size_t) {}), &ledger);
  const auto start = arena.mark();
  arena.take(Dtype::f32, {16}, "x");
  {
    const ArenaLabel label(arena, "saved activations");
    arena.take(Dtype::f32, {32}, "y");
  }
  arena.take(Dtype::u8, {1}, "z");
  EXPECT_EQ(held(ledger.holders(), "saved activations"), 128u);
  EXPECT_EQ(held(ledger.holders(), "scratch"), 128u) << "in steps of 64 bytes, as the arena takes them";
  arena.rewind(start);
  EXPECT_EQ(ledger.used(), 0u);
  EXPECT_EQ(ledger.peak(), 256u);
}

}  // namespace
}  // namespace tessera
