// Dtypes, shapes, arena, buffers, errors, text.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/backend.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/range.h"
#include "core/text.h"

namespace tessera {
namespace {

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(Bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(Bf16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // half way, to even
  EXPECT_EQ(Bf16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
  EXPECT_EQ(Bf16(std::bit_cast<float>(0x3f808001u)).bits, 0x3f81);
  EXPECT_EQ(Bf16(std::numeric_limits<float>::max()).bits, 0x7f80);  // beyond the largest: infinity
  EXPECT_TRUE(std::isnan(float(Bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(Bf16(-0.0f).bits, 0x8000);
}

TEST(F16, RoundsAndKeepsSubnormals) {
  EXPECT_EQ(F16(1.0f).bits, 0x3c00);
  EXPECT_EQ(F16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(F16(5.9604645e-8f).bits, 0x0001);
  EXPECT_EQ(float(F16(0.333251953125f)), 0.333251953125f);
}

TEST(Shape, SizesRowsAndText) {
  const Shape s{2, 3, 5};
  EXPECT_EQ(s.size(), 30);
  EXPECT_EQ(s.rows(), 6);
  EXPECT_EQ(s.cols(), 5);
  EXPECT_EQ(s.text(), "(2, 3, 5)");
  EXPECT_EQ(Shape{}.size(), 1);
}

TEST(Tensor, RowsAreViews) {
  float v[12];
  const Tensor t{v, Dtype::f32, {4, 3}, nullptr};
  EXPECT_EQ(t.rows_from(2, 2).data, v + 6);
  EXPECT_EQ(t.rows_from(2, 2).shape, (Shape{2, 3}));
  EXPECT_EQ(t.reshaped({2, 6}).cols(), 6);
  EXPECT_EQ(t.bytes(), 48u);
}

TEST(Range, Intersection) {
  EXPECT_EQ(intersect({2, 8}, {5, 12}), (Range{5, 8}));
  EXPECT_EQ(intersect({2, 4}, {6, 9}).size(), 0u);
  EXPECT_EQ(intersect({6, 9}, {2, 4}).size(), 0u);
}

class ArenaTest : public testing::Test {
 protected:
  const std::unique_ptr<Backend> backend_ = make_backend("cpu", 1);
  Arena arena_{backend_.get(), backend_->allocate(4096, "test")};
};

TEST_F(ArenaTest, TakesAlignedAndGivesBack) {
  const Tensor a = arena_.take(Dtype::u8, {3}, "a");
  const Tensor b = arena_.take(Dtype::f32, {10}, "b");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % 64, 0u);
  EXPECT_GE(b.as<std::byte>(), a.as<std::byte>() + 3);
  EXPECT_EQ(arena_.used(), 128u);
  {
    const ArenaScope scope(arena_);
    arena_.take(Dtype::f32, {100}, "scratch");
    EXPECT_EQ(arena_.used(), 128u + 448);
  }
  EXPECT_EQ(arena_.used(), 128u);
  EXPECT_EQ(arena_.high_water(), 128u + 448);
}

TEST_F(ArenaTest, FullNamesTheLargestHolders) {
  arena_.take(Dtype::f32, {700}, "logits");
  arena_.take(Dtype::f32, {100}, "gate");
  try {
    arena_.take(Dtype::f32, {500}, "queries");
    FAIL();
  } catch (const Error& e) {
    const std::string what = e.what();
    for (const char* word : {"queries", "logits", "gate", "allowed:", "do this:"}) EXPECT_NE(what.find(word), std::string::npos) << what;
    EXPECT_LT(what.find("logits"), what.find("gate"));
  }
}

TEST(Buffer, FreesOnceAndMoves) {
  static int freed = 0;
  {
    char memory[8];
    Buffer a(memory, 8, [](void*, size_t bytes) { freed += int(bytes); });
    Buffer b = std::move(a);
    EXPECT_FALSE(a);
    EXPECT_EQ(b.bytes(), 8u);
    Buffer c;
    c = std::move(b);
  }
  EXPECT_EQ(freed, 8);
}

TEST(Error, HasFourParts) {
  try {
    fail("--lr", "\"fast\"", "a number above 0", "write --lr 2e-4");
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "--lr: \"fast\"\n  allowed: a number above 0\n  do this: write --lr 2e-4");
  }
}

TEST(Text, Numbers) {
  EXPECT_EQ(str("a", 1, ' ', 2.5, " ", 0.1f, " ", true), "a1 2.5 0.1 true");
  EXPECT_EQ(str(0.1), "0.1");
  EXPECT_EQ(fixed(2.0 / 3, 3), "0.667");
  EXPECT_EQ(significant(0.00036798537, 4), "0.000368");
  EXPECT_EQ(human_bytes(17), "17 B");
  EXPECT_EQ(human_bytes(size_t(3) << 29), "1.50 GiB");
  EXPECT_EQ(human_count(134515008), "134.5 M");
  EXPECT_EQ(human_seconds(65), "01:05");
  EXPECT_EQ(human_seconds(3723), "1:02:03");
}

TEST(Text, Pieces) {
  EXPECT_EQ(split("a,,b", ','), (std::vector<std::string>{"a", "", "b"}));
  EXPECT_EQ(join({"a", "b"}, ", "), "a, b");
  EXPECT_EQ(trim("  x y\n"), "x y");
  EXPECT_EQ(replace_all("aXbXc", "X", "--"), "a--b--c");
  EXPECT_TRUE(ends_with("model.norm.weight", "norm.weight"));
  EXPECT_FALSE(starts_with("a", "ab"));
}

TEST(Text, NearestFindsTyposAndNothingElse) {
  const std::vector<std::string> names{"learning_rate", "lora_rank", "seed"};
  EXPECT_EQ(nearest("learnin_rate", names), "learning_rate");
  EXPECT_EQ(nearest("lora_rnak", names), "lora_rank");
  EXPECT_EQ(nearest("sed", names), "seed");
  EXPECT_EQ(nearest("completely_other", names), "");
}

}  // namespace
}  // namespace tessera
