#include "quant/format.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace tessera {
namespace {

std::string refusal(std::string_view name) {
  try {
    find_format(name);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Format, Rows) {
  EXPECT_EQ(find_format("dense").table, nullptr);
  EXPECT_EQ(find_format("nf4").table, nf4_table());
  EXPECT_EQ(find_format("nf4").bnb_type, "nf4");
}

TEST(Format, RefusesByName) {
  EXPECT_NE(refusal("nf5").find("\"nf5\" is not a weight format"), std::string::npos);
  EXPECT_NE(refusal("nf5").find("dense, nf4"), std::string::npos);
  for (const char* name : {"fp4", "int8", "affine4", "affine8", "hqq", "hqq4"})
    EXPECT_NE(refusal(name).find(std::string("\"") + name + "\" is not supported yet"), std::string::npos) << name;
}

TEST(Format, DenseShape) {
  Weight w = make_weight(find_format("dense"), true, 3, 5, Dtype::bf16, true);
  int count = 0;
  parts(w, [&](const char* suffix, Param& p) {
    ++count;
    EXPECT_STREQ(suffix, "");
    EXPECT_EQ(p.value.dtype, Dtype::bf16);
    EXPECT_EQ(p.value.shape, (Shape{3, 5}));
    EXPECT_TRUE(p.value.empty());
    EXPECT_EQ(p.grad.dtype, Dtype::f32);
    EXPECT_TRUE(p.trains);
  });
  EXPECT_EQ(count, 1);
}

// 3 x 5001 elements: 15003 codes in 7502 bytes, 235 blocks of 64. 300 x 64: 300 blocks, 2 nested blocks.
TEST(Format, CodeShapes) {
  const auto shapes = [](bool double_quant, int64_t out, int64_t in) {
    std::vector<std::string> texts;
    Weight w = make_weight(find_format("nf4"), double_quant, out, in, Dtype::bf16, false);
    parts(w, [&](const char* suffix, Param& p) { texts.push_back(suffix + std::string(name_of(p.value.dtype)) + p.value.shape.text()); });
    return texts;
  };
  EXPECT_EQ(shapes(false, 3, 5001), (std::vector<std::string>{"U8(7502)", ".absmaxF32(235)"}));
  EXPECT_EQ(shapes(true, 300, 64),
            (std::vector<std::string>{"U8(9600)", ".absmaxU8(300)", ".nested_absmaxF32(2)", ".nested_offsetF32(1)"}));
}

}  // namespace
}  // namespace tessera
