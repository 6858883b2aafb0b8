// 4-bit and nested 8-bit codes against bitsandbytes' values, bit for bit, on every device. Where the values follow from flush-to-zero on a
// GPU ("strict": false) the backends give the same bits.
#include "quant/codebook4.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "backend/backend.h"
#include "core/rng.h"
#include "ops/codebook4.h"
#include "testing/golden.h"
#include "testing/on_every_device.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

Tensor place(TestMemory& memory, Dtype dtype, int64_t n, const void* data) {
  const Tensor t = memory.zeros(dtype, {n});
  if (n) memory.backend().copy(t.data, data, t.bytes());
  return t;
}
Tensor place(TestMemory& memory, const GoldenFile& golden, const std::string& name) {
  const std::string stored = golden.dtype(name);
  const Dtype dtype = stored == "F32" ? Dtype::f32 : stored == "BF16" ? Dtype::bf16 : stored == "F16" ? Dtype::f16 : Dtype::u8;
  const auto bytes = golden.bytes(name);
  return place(memory, dtype, int64_t(bytes.size() / size_of(dtype)), bytes.data());
}

std::vector<uint8_t> bytes_of(Tensor t) {
  std::vector<uint8_t> out(t.bytes());
  t.home->copy(out.data(), t.data, t.bytes());
  return out;
}
std::vector<float> floats_of(Tensor t) {
  const std::vector<double> values = to_doubles(t);
  return {values.begin(), values.end()};
}

// Elements whose bits differ; a NaN equals any NaN.
int64_t differing(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return -1;
  int64_t count = 0;
  for (size_t i = 0; i < a.size(); ++i)
    count += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]));
  return count;
}

struct Encoded {
  Tensor codes, absmax;
};
Encoded encode(TestMemory& memory, Tensor x, int64_t block) {
  const Encoded out{memory.zeros(Dtype::u8, {pieces(x.size(), 2)}), memory.zeros(Dtype::f32, {pieces(x.size(), block)})};
  codebook4_encode(out.codes, out.absmax, x, nf4_table(), block);
  return out;
}

// The codes of scales as `backend` computes them, in its memory.
NestedAbsmax nested_of(TestMemory& memory, const std::vector<float>& absmax, float offset) {
  if (memory.backend().host_can_read()) return encode_absmax(absmax, offset, &memory.backend());
  const auto n = int64_t(absmax.size());
  const Tensor q = memory.zeros(Dtype::u8, {n}), scale = memory.zeros(Dtype::f32, {pieces(n, nested_block)});
  nested_encode(q, scale, place(memory, Dtype::f32, n, absmax.data()), offset, dynamic_map());
  return {bytes_of(q), floats_of(scale), offset};
}
NestedAbsmax nested_of(TestMemory& memory, const std::vector<float>& absmax) { return nested_of(memory, absmax, torch_mean(absmax)); }

// A weight of `n` elements with the given codes, as one row.
Weight weight_of(TestMemory& memory, Tensor codes, const NestedAbsmax& nested, int64_t n) {
  Weight w = make_weight(find_format("nf4"), true, 1, n, Dtype::f32, false);
  auto& c = std::get<Codebook4>(w.store);
  c.codes.value = codes;
  c.absmax_codes.value = place(memory, Dtype::u8, int64_t(nested.codes.size()), nested.codes.data());
  c.nested_absmax.value = place(memory, Dtype::f32, int64_t(nested.nested_absmax.size()), nested.nested_absmax.data());
  c.nested_offset.value = place(memory, Dtype::f32, 1, &nested.offset);
  return w;
}

class Codebook4Test : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_test_backend(GetParam(), 2);
  TestMemory memory_{*backend_};
};

// The numbers are in all dtypes on each device, so the rows of f32 name them all.
std::vector<std::string> devices() {
  std::vector<std::string> out;
  for (const DeviceRow& row : every_device())
    if (row.dtype == Dtype::f32) out.emplace_back(row.device);
  return out;
}
INSTANTIATE_TEST_SUITE_P(Devices, Codebook4Test, testing::ValuesIn(devices()), [](const auto& row) { return row.param; });

void check_cases(TestMemory& memory, const std::string& file, int expected) {
  const Json cases = Json::parse(shared_text(file + ".json"))["cases"];
  const GoldenFile golden(file + ".safetensors");
  int checked = 0;
  for (const Json& row : cases) {
    if (row["quant_type"] != "nf4") continue;
    SCOPED_TRACE(row["name"].get<std::string>());
    const int64_t block = row["blocksize"];
    const Tensor x = place(memory, golden, row["input"]);
    const Encoded encoded = encode(memory, x, block);
    EXPECT_EQ(bytes_of(encoded.codes), golden.bytes(row["packed"]));
    EXPECT_EQ(differing(floats_of(encoded.absmax), golden.floats(row["absmax"])), 0);
    for (const auto& [dtype, name] : {std::pair(Dtype::f32, "dequant_f32"), {Dtype::bf16, "dequant_bf16"}, {Dtype::f16, "dequant_f16"}}) {
      if (dtype == Dtype::f16 && memory.backend().host_can_read()) continue;  // the CPU does not compute in f16
      const Tensor out = memory.zeros(dtype, {x.size()});
      memory.backend().codebook4_decode(out, encoded.codes, encoded.absmax, nf4_table(), block);
      EXPECT_EQ(differing(floats_of(out), golden.floats(row[name])), 0) << name;
    }
    ++checked;
  }
  EXPECT_EQ(checked, expected);
}

TEST_P(Codebook4Test, RandomGolden) {
  NEEDS_SHARED();
  check_cases(memory_, "golden/quant/bnb_4bit/random", 42);
}

TEST_P(Codebook4Test, EdgeGolden) {
  NEEDS_SHARED();
  check_cases(memory_, "golden/quant/bnb_4bit/edge", 37);
}

TEST_P(Codebook4Test, StorageGolden) {
  NEEDS_SHARED();
  const Json cases = Json::parse(shared_text("golden/quant/bnb_4bit/storage.json"))["cases"];
  const GoldenFile golden("golden/quant/bnb_4bit/storage.safetensors");
  for (const Json& row : cases) {
    if (row["quant_type"] != "nf4") continue;
    SCOPED_TRACE(row["name"].get<std::string>());
    EXPECT_EQ(bytes_of(encode(memory_, place(memory_, golden, row["input"]), row["blocksize"]).codes), golden.bytes(row["packed"]));
  }
}

TEST_P(Codebook4Test, NestedGolden) {
  NEEDS_SHARED();
  const Json cases = Json::parse(shared_text("golden/quant/bnb_4bit/nested.json"))["cases"];
  const GoldenFile golden("golden/quant/bnb_4bit/nested.safetensors");
  for (const Json& row : cases) {
    SCOPED_TRACE(row["name"].get<std::string>());
    const auto absmax = golden.floats(row["absmax_before_nesting"]);
    const NestedAbsmax nested = nested_of(memory_, absmax);
    EXPECT_EQ(nested.offset, row["nested_offset"].get<float>());
    EXPECT_EQ(nested.codes, golden.bytes(row["q_absmax"]));
    EXPECT_EQ(differing(nested.nested_absmax, golden.floats(row["nested_absmax"])), 0);

    const Tensor codes = place(memory_, golden, row["packed"]);
    const int64_t n = row["numel"], block = row["blocksize"];
    const Weight w = weight_of(memory_, codes, nested, n);
    const auto& c = std::get<Codebook4>(w.store);
    const Tensor restored = memory_.zeros(Dtype::f32, {int64_t(absmax.size())});
    nested_decode(restored, c.absmax_codes.value, c.nested_absmax.value, c.nested_offset.value, dynamic_map());
    EXPECT_EQ(differing(floats_of(restored), golden.floats(row["absmax_restored"])), 0);

    if (row["quant_type"] != "nf4") continue;
    const Encoded encoded = encode(memory_, place(memory_, golden, row["input"]), block);
    EXPECT_EQ(bytes_of(encoded.codes), bytes_of(codes));
    EXPECT_EQ(differing(floats_of(encoded.absmax), absmax), 0);
    if (block != block4) continue;
    const Tensor out = memory_.zeros(Dtype::f32, {n}), bf16 = memory_.zeros(Dtype::bf16, {n});
    decode(out, c, restored);
    decode(bf16, c, restored);
    EXPECT_EQ(sha256_of(bytes_of(out)), row["dequant_f32_sha256"].get<std::string>());
    EXPECT_EQ(differing(floats_of(bf16), golden.floats(row["dequant_bf16"])), 0);
  }
}

// Who made a file's 8-bit codes: bitsandbytes' rule for GPUs, or its CPU library, which cuts [-1, 1] into 65536 bins and so may take
// the other neighbour of a value within a bin of their middle.
enum class Maker { gpu_rule, cpu_library };

void check_absmax_codes(const NestedAbsmax& ours, const std::vector<float>& absmax, const std::vector<uint8_t>& stored, Maker maker) {
  if (maker == Maker::gpu_rule) {
    EXPECT_EQ(ours.codes, stored);
  }
  ASSERT_EQ(ours.codes.size(), stored.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    const int a = ours.codes[i], b = stored[i];
    if (a == b) continue;
    EXPECT_EQ(std::abs(a - b), 1) << i;
    const double value = (double(absmax[i]) - ours.offset) / ours.nested_absmax[i / nested_block];
    EXPECT_NEAR(value, (double(dynamic_map()[a]) + dynamic_map()[b]) / 2, 2.0 / 65536) << i;
  }
}

// Encodes every 4-bit weight of a checkpoint anew from its dense source and compares all stored arrays. Returns how many there were.
int check_checkpoint(TestMemory& memory, const std::string& quantized_path, const std::string& dense_path, Dtype dtype, Maker maker) {
  const GoldenFile quantized(quantized_path), dense(dense_path);
  const std::string suffix = ".quant_state.bitsandbytes__nf4";
  int checked = 0;
  for (const std::string& state : quantized.names()) {
    if (!state.ends_with(suffix)) continue;
    const std::string name = state.substr(0, state.size() - suffix.size());
    SCOPED_TRACE(quantized_path + ": " + name);
    const auto text = quantized.bytes(state);
    const Json json = Json::parse(text.begin(), text.end());
    const auto values = dense.doubles(name);
    const Encoded encoded = encode(memory, memory.of(dtype, {int64_t(values.size())}, values), block4);
    const auto absmax = floats_of(encoded.absmax);
    const NestedAbsmax nested = nested_of(memory, absmax);
    EXPECT_EQ(bytes_of(encoded.codes), quantized.bytes(name));
    check_absmax_codes(nested, absmax, quantized.bytes(name + ".absmax"), maker);
    EXPECT_EQ(differing(nested.nested_absmax, quantized.floats(name + ".nested_absmax")), 0);
    EXPECT_EQ(nested.offset, json["nested_offset"].get<float>());
    EXPECT_EQ(differing({dynamic_map(), dynamic_map() + 256}, quantized.floats(name + ".nested_quant_map")), 0);
    EXPECT_EQ(differing({nf4_table(), nf4_table() + 16}, quantized.floats(name + ".quant_map")), 0);
    ++checked;
  }
  return checked;
}

TEST_P(Codebook4Test, CheckpointGolden) {
  NEEDS_SHARED();
  EXPECT_EQ(check_checkpoint(memory_, "golden/quant/checkpoints/nf4_double_quant", "golden/quant/checkpoints/dense_bf16", Dtype::bf16,
                             Maker::gpu_rule),
            14);
}

TEST_P(Codebook4Test, TinyLlamaBaseGolden) {
  NEEDS_SHARED();
  EXPECT_EQ(check_checkpoint(memory_, "golden/train/qlora/base_tiny_llama_nf4dq.safetensors", "golden/train/models/tiny_llama", Dtype::bf16,
                             Maker::gpu_rule),
            14);
}

TEST_P(Codebook4Test, StoriesBaseGolden) {
  NEEDS_SHARED();
  const std::string dense = "models/stories260k", base = "golden/train/curves/base_stories260k_nf4dq_";
  EXPECT_EQ(check_checkpoint(memory_, base + "fp32.safetensors", dense, Dtype::f32, Maker::cpu_library), 35);
  EXPECT_EQ(check_checkpoint(memory_, base + "bf16.safetensors", dense, Dtype::bf16, Maker::cpu_library), 35);
}

TEST_P(Codebook4Test, DequantizedCheckpointGolden) {
  NEEDS_SHARED();
  const std::string folder = "golden/quant/checkpoints/nf4_double_quant";
  const GoldenFile golden(folder);
  const Json expected = Json::parse(shared_text("golden/quant/checkpoints/expected.json"))["folders"]["nf4_double_quant"];
  for (const auto& [name, sha] : expected["dequantized_f32_sha256"].items()) {
    SCOPED_TRACE(name);
    const auto text = golden.bytes(name + ".quant_state.bitsandbytes__nf4");
    const NestedAbsmax nested{golden.bytes(name + ".absmax"), golden.floats(name + ".nested_absmax"),
                              Json::parse(text.begin(), text.end())["nested_offset"].get<float>()};
    const Tensor codes = place(memory_, golden, name);
    const int64_t n = 2 * codes.size();
    const Tensor out = memory_.zeros(Dtype::f32, {n}), scratch = memory_.zeros(Dtype::f32, {n / block4});
    decode(out, std::get<Codebook4>(weight_of(memory_, codes, nested, n).store), scratch);
    EXPECT_EQ(sha256_of(bytes_of(out)), sha.get<std::string>());
  }
}

// Published blocks that need no files: x = (i - 32) / 32.
TEST_P(Codebook4Test, Ramp) {
  std::vector<double> values(64);
  for (int i = 0; i < 64; ++i) values[i] = (i - 32) / 32.0;
  const std::string digits = "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff";
  std::vector<uint8_t> packed;
  for (size_t i = 0; i < 64; i += 2) packed.push_back(uint8_t(std::stoi(digits.substr(i, 2), nullptr, 16)));
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Encoded encoded = encode(memory_, memory_.of(dtype, {64}, values), block4);
    EXPECT_EQ(bytes_of(encoded.codes), packed);
    EXPECT_EQ(floats_of(encoded.absmax), std::vector<float>{1});
  }
}

// One element less than 65 blocks, so with an odd count and a short last block, and enough of them for several threads.
TEST_P(Codebook4Test, ThreadsDoNotChangeBits) {
  const int64_t n = 64 * 4000 - 1;
  std::vector<uint8_t> first[3];
  for (const int threads : {2, 1, 3}) {
    const auto backend = make_test_backend(GetParam(), threads);
    TestMemory memory(*backend);
    const Encoded encoded = encode(memory, memory.random(Dtype::bf16, {n}, 7, 0.02f), block4);
    const Tensor out = memory.zeros(Dtype::bf16, {n});
    codebook4_decode(out, encoded.codes, encoded.absmax, nf4_table(), block4);
    const std::vector<uint8_t> now[] = {bytes_of(encoded.codes), bytes_of(encoded.absmax), bytes_of(out)};
    EXPECT_EQ(now[0].back() & 15, 7) << "the missing element counts as zero";
    for (size_t i = 0; i < 3; ++i)
      if (threads == 2) first[i] = now[i];
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(now[i] == first[i]) << threads << " threads";
  }
}

// No decoded value is further from its source than half the widest gap of the table.
TEST_P(Codebook4Test, ErrorBound) {
  const int64_t n = 64 * 100;
  const Tensor x = memory_.random(Dtype::f32, {n}, 3), out = memory_.zeros(Dtype::f32, {n});
  const Encoded encoded = encode(memory_, x, block4);
  codebook4_decode(out, encoded.codes, encoded.absmax, nf4_table(), block4);
  const float half_gap = (nf4_table()[1] - nf4_table()[0]) / 2 * 1.00001f;
  const std::vector<float> source = floats_of(x), values = floats_of(out), absmax = floats_of(encoded.absmax);
  for (size_t i = 0; i < size_t(n); ++i) ASSERT_LE(std::abs(source[i] - values[i]), half_gap * absmax[i / 64]) << i;
}

// Addresses that are multiples of nothing, blocks that are no power of two, ends within a pack.
TEST_P(Codebook4Test, DecodesAnywhere) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const int64_t block : {64, 96})
      for (const int64_t skip : {0, 1})
        for (const int64_t n : {1, 63, 645, 20001}) {
          TestMemory memory(*backend_);
          const auto part = [skip](Tensor whole, int64_t count) {
            return Tensor{whole.as<std::byte>() + size_t(skip) * size_of(whole.dtype), whole.dtype, {count}, whole.home};
          };
          const Tensor all = memory.zeros(dtype, {n + skip + 1}), bytes = memory.ids({pieces(n, 2) + skip}, 5, 256);
          const Tensor stored = memory.of(Dtype::u8, bytes.shape, to_doubles(bytes));
          const Tensor absmax = memory.random(Dtype::f32, {pieces(n, block)}, 6);
          codebook4_decode(part(all, n), part(stored, pieces(n, 2)), absmax, nf4_table(), block);
          const std::vector<float> values = floats_of(all), scales = floats_of(absmax);
          const std::vector<uint8_t> codes = bytes_of(stored);
          for (int64_t i = 0; i < n; ++i) {
            const float product = nf4_table()[codes[size_t(skip + i / 2)] >> (i % 2 ? 0 : 4) & 15] * scales[size_t(i / block)];
            ASSERT_EQ(values[size_t(skip + i)], dtype == Dtype::bf16 ? float(Bf16(product)) : product) << i << " of " << n;
          }
          EXPECT_EQ(values.back(), 0) << "written behind the end";
        }
}

TEST(DynamicMap, Published) {
  NEEDS_SHARED();
  const Json vectors = Json::parse(shared_text("reference/quant_vectors.json"));
  const auto& hex = vectors["dynamic_signed_fp32_hex"];
  for (size_t i = 0; i < 256; ++i)
    EXPECT_EQ(std::bit_cast<uint32_t>(dynamic_map()[i]), std::stoul(hex[i].get<std::string>(), nullptr, 16)) << i;
  EXPECT_EQ(sha256_of(std::vector<float>(dynamic_map(), dynamic_map() + 256)),
            "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c");
}

TEST_P(Codebook4Test, GivenOffsetIsKept) {
  const std::vector<float> absmax = {0.5f, 0.25f, 0.75f};
  const NestedAbsmax nested = nested_of(memory_, absmax, 0.5f);
  EXPECT_EQ(nested.offset, 0.5f);
  EXPECT_EQ(nested.nested_absmax, std::vector<float>{0.25f});
  EXPECT_EQ(nested.codes, (std::vector<uint8_t>{127, 0, 255}));  // 0, -0.993 and 1 of 0.25
}

// The entry nearest to y by looking at all of them; of two that are equally near, by the middle as it is rounded, the even one. NaN: 0.
uint8_t nearest_entry(float y) {
  const auto middle = [](int i) { return (dynamic_map()[i] + dynamic_map()[i + 1]) * 0.5f; };
  int code = 0;
  while (code < 255 && middle(code) < y) ++code;
  return uint8_t(code < 255 && middle(code) == y ? code + code % 2 : code);
}

// Every middle between two entries, the floats next to it, and what is not a number: at every place of a block.
TEST_P(Codebook4Test, NestedCodesAreTheNearestEntries) {
  std::vector<float> values = {1, -1, 0, NAN, 1e-39f, -1e-39f, 0x1p-126f};
  for (int i = 0; i < 255; ++i) {
    const float middle = (dynamic_map()[i] + dynamic_map()[i + 1]) * 0.5f;
    for (const float x : {std::nextafter(middle, -2.f), middle, std::nextafter(middle, 2.f)}) values.push_back(x);
  }
  for (const size_t skip : {0, 1, 7, 100}) {
    std::vector<float> absmax(values.begin() + ptrdiff_t(skip), values.end());
    for (size_t i = 0; i < absmax.size(); i += nested_block) absmax[i] = 1;  // the largest of each block: y is the value itself
    const NestedAbsmax nested = nested_of(memory_, absmax, 0);
    EXPECT_EQ(nested.nested_absmax, std::vector<float>(nested.nested_absmax.size(), 1));
    for (size_t i = 0; i < absmax.size(); ++i) {
      const float y = std::abs(absmax[i]) < 0x1p-126f ? 0 : absmax[i];
      ASSERT_EQ(nested.codes[i], nearest_entry(y)) << i << " of " << absmax.size() << ": " << absmax[i];
    }
  }
}

TEST_P(Codebook4Test, ThreadsDoNotChangeNestedBits) {
  const Tensor x = memory_.random(Dtype::f32, {256 * 300 + 77}, 7);
  const auto more = make_test_backend(GetParam(), 3);
  TestMemory other(*more);
  const NestedAbsmax two = nested_of(memory_, floats_of(x)), three = nested_of(other, floats_of(x));
  EXPECT_EQ(two.codes, three.codes);
  EXPECT_EQ(two.nested_absmax, three.nested_absmax);
}

}  // namespace
}  // namespace tessera
