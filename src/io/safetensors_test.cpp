#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"
#include "testing/golden.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

// The message of the error that opening gives, "" when it opens.
std::string open_error(const std::string& path) {
  try {
    TensorFiles::open(path);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string file_bytes(const std::string& header, const std::string& data, uint64_t length) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}
std::string file_bytes(const std::string& header, const std::string& data = "") { return file_bytes(header, data, header.size()); }

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

struct Fault {
  const char* what;
  std::string bytes;
  std::vector<std::string> names;  // each must be in the message
};

std::vector<Fault> faults() {
  const std::string two = entry("a", "F32", "[2]", "[0,8]");
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets, size_t bytes) {
    return file_bytes(str("{", entry("a.b", dtype, shape, offsets), "}"), std::string(bytes, 'x'));
  };
  return {
      {"empty file", "", {"0 bytes"}},
      {"seven bytes", "1234567", {"7 bytes"}},
      {"length beyond file", file_bytes("{}", "", 3), {"3 bytes", "10 bytes"}},
      {"length 2^64-1", file_bytes("{}", "", UINT64_MAX), {"18446744073709551615"}},
      {"length over the limit", file_bytes("{}", "", 100'000'001), {"100000001", "100000000"}},
      {"no header", file_bytes(""), {"header", "empty"}},
      {"not JSON", file_bytes("{oops}"), {"header", "line 1, column 2"}},
      {"not UTF-8", file_bytes("{\"\xff\":1}"), {"header"}},
      {"an array", file_bytes("[]"), {"no JSON object"}},
      {"leading space", file_bytes(" {}"), {"begins with {"}},
      {"text after the header", file_bytes("{} {}"), {"header", "column 4"}},
      {"duplicate name", file_bytes("{" + two + "," + two + "}", "12345678"), {"\"a\"", "twice"}},
      {"no object", file_bytes("{\"a\":1}"), {": a"}},
      {"no dtype", file_bytes(R"({"a":{"shape":[],"data_offsets":[0,0]}})"), {": a", "no dtype"}},
      {"no shape", file_bytes(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})"), {": a", "no shape"}},
      {"no offsets", file_bytes(R"({"a":{"dtype":"U8","shape":[0]}})"), {": a", "no data_offsets"}},
      {"dtype a number", file_bytes(R"({"a":{"dtype":8,"shape":[0],"data_offsets":[0,0]}})"), {": a", "dtype 8"}},
      {"unknown dtype", one("F12", "[2]", "[0,8]", 8), {"a.b", "F12"}},
      {"negative size", one("F32", "[-2]", "[0,8]", 8), {"a.b", "[-2]"}},
      {"two negative sizes", one("F32", "[-1,-2]", "[0,8]", 8), {"a.b", "[-1,-2]"}},
      {"fraction", one("F32", "[2.0]", "[0,8]", 8), {"a.b", "[2.0]"}},
      {"text for a size", one("F32", "[\"2\"]", "[0,8]", 8), {"a.b"}},
      {"size over 63 bits", one("U8", "[9223372036854775808]", "[0,8]", 8), {"a.b"}},
      {"product overflows", one("F32", "[4294967296,4294967296]", "[0,8]", 8), {"a.b", "64-bit"}},
      {"product wraps to the right size", one("F32", "[4611686018427387905,2]", "[0,8]", 8), {"a.b", "64-bit"}},
      {"half a byte", one("F4", "[3]", "[0,1]", 1), {"a.b"}},
      {"shape no array", one("F32", "2", "[0,8]", 8), {"a.b"}},
      {"too many bytes", one("F32", "[2]", "[0,9]", 9), {"a.b", "[2]", "9 bytes", "8 bytes"}},
      {"scalar too short", one("F32", "[]", "[0,2]", 2), {"a.b", "4 bytes"}},
      {"begin behind end", one("F32", "[2]", "[8,0]", 8), {"a.b", "[8,0]"}},
      {"negative offset", one("F32", "[2]", "[-8,0]", 8), {"a.b", "[-8,0]"}},
      {"fractional offset", one("F32", "[2]", "[0,8.0]", 8), {"a.b"}},
      {"three offsets", one("F32", "[2]", "[0,4,8]", 8), {"a.b"}},
      {"beyond the data", one("F32", "[2]", "[0,8]", 7), {"a.b", "7 bytes", "8"}},
      {"offsets near 2^64", one("U8", "[0]", "[18446744073709551615,18446744073709551615]", 0), {"a.b"}},
      {"overlap", file_bytes("{" + two + "," + entry("b", "F32", "[2]", "[4,12]") + "}", std::string(12, 'x')), {": b", "overlap", " a"}},
      {"same bytes", file_bytes("{" + two + "," + entry("b", "F32", "[2]", "[0,8]") + "}", std::string(8, 'x')), {": b", "overlap", " a"}},
      {"hole", file_bytes("{" + two + "," + entry("b", "F32", "[2]", "[9,17]") + "}", std::string(17, 'x')), {": b", "1 bytes before it"}},
      {"hole in front", one("F32", "[2]", "[8,16]", 16), {"a.b", "8 bytes before it"}},
      {"bytes at the end", one("F32", "[2]", "[0,8]", 10), {"2 bytes at its end"}},
      {"metadata no object", file_bytes(R"({"__metadata__":"pt"})"), {"__metadata__"}},
      {"metadata no text", file_bytes(R"({"__metadata__":{"n":3}})"), {"__metadata__", "\"n\" is 3"}},
  };
}

TEST(Safetensors, EveryFaultIsRefusedByName) {
  const TestFolder folder;
  const std::string path = folder / "x.safetensors";
  for (const Fault& fault : faults()) {
    write_file_atomic(path, fault.bytes);
    const std::string error = open_error(path);
    EXPECT_NE(error.find(path), std::string::npos) << fault.what << " -> " << error;
    for (const std::string& name : fault.names)
      EXPECT_NE(error.find(name), std::string::npos) << fault.what << " lacks " << name << " in " << error;
  }
}

TEST(Safetensors, UnusualFilesThatAreCorrect) {
  const TestFolder folder;
  const std::string path = folder / "x.safetensors";
  const std::vector<std::pair<std::string, size_t>> good = {
      {file_bytes("{}"), 0},
      {file_bytes("{}      "), 0},
      {file_bytes("{" + entry("b", "U8", "[0,9223372036854775807]", "[0,0]") + "," + entry("a", "U8", "[1]", "[0,1]") + "}", "x"), 2},
      {file_bytes("{" + entry("a", "F4", "[2]", "[0,1]") + "," + entry("b", "F8_E4M3", "[]", "[1,2]") + "}", "xy"), 2},
      {file_bytes("{" + entry("b", "U8", "[1]", "[1,2]") + R"(,"__metadata__":{"k":"v"},)" + entry("a", "U8", "[1]", "[0,1]") + "}", "xy"),
       2},
  };
  for (const auto& [bytes, tensors] : good) {
    write_file_atomic(path, bytes);
    EXPECT_EQ(open_error(path), "");
    EXPECT_EQ(TensorFiles::open(path).all().size(), tensors);
  }
  EXPECT_EQ(TensorFiles::open(path).metadata().at("k"), "v");
}

TEST(Safetensors, ViewsSurviveAMove) {
  const TestFolder folder;
  write_file_atomic(folder / "model.safetensors", file_bytes("{" + entry("a.weight", "I8", "[2]", "[0,2]") + "}", "xy"));
  TensorFiles first = TensorFiles::open(folder.path());
  const TensorFiles files = std::move(first);
  const StoredTensor& a = files.get("a.weight");
  EXPECT_EQ(a.dtype_name, "I8");
  EXPECT_FALSE(a.known_dtype);
  EXPECT_EQ(a.size(), 2);
  EXPECT_EQ(a.bytes, 2u);
  EXPECT_EQ(a.data[1], std::byte('y'));
  EXPECT_EQ(a.where(), (folder / "model.safetensors") + ": a.weight");
  EXPECT_EQ(files.find("b"), nullptr);
  try {
    files.get("b.weight");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("b.weight\n  allowed: for example a.weight"), std::string::npos) << e.what();
  }
}

// A folder with two shards, a in the first and b in the second, and the given weight_map.
std::string index_error(const TestFolder& folder, const std::string& weight_map, const std::string& in_second = "b") {
  write_file_atomic(folder / "1.safetensors", file_bytes("{" + entry("a", "U8", "[1]", "[0,1]") + "}", "x"));
  write_file_atomic(folder / "2.safetensors", file_bytes("{" + entry(in_second, "U8", "[1]", "[0,1]") + "}", "y"));
  write_file_atomic(folder / "model.safetensors.index.json", R"({"metadata":{"total_size":2},"weight_map":)" + weight_map + "}");
  return open_error(folder.path());
}

TEST(Safetensors, IndexAndShards) {
  const TestFolder folder;
  EXPECT_EQ(index_error(folder, R"({"a":"1.safetensors","b":"2.safetensors"})"), "");
  const TensorFiles files = TensorFiles::open(folder.path());
  EXPECT_EQ(files.files(), (std::vector<std::string>{folder / "1.safetensors", folder / "2.safetensors"}));
  EXPECT_EQ(files.get("b").data[0], std::byte('y'));
}

TEST(Safetensors, IndexFaultsAreRefusedByName) {
  const TestFolder folder;
  const auto expect_named = [](const std::string& error, const std::vector<std::string>& names) {
    for (const std::string& name : names) EXPECT_NE(error.find(name), std::string::npos) << name << " in " << error;
  };
  expect_named(open_error(folder.path()), {folder.path(), "model.safetensors", "model.safetensors.index.json"});
  expect_named(open_error(folder / "absent"), {folder / "absent"});
  const std::string index = "model.safetensors.index.json";
  expect_named(index_error(folder, "3"), {index, "weight_map"});
  expect_named(index_error(folder, R"({"a":1})"), {index, "a: 1"});
  expect_named(index_error(folder, R"({"a":"1.safetensors","a":"2.safetensors"})"), {index, "\"a\"", "twice"});
  for (const char* out : {"/etc/passwd", "../1.safetensors", "x/../../1.safetensors", "..", ""}) {
    expect_named(index_error(folder, std::string(R"({"a":")") + out + "\"}"), {index, "a", std::string("\"") + out + "\""});
  }
  expect_named(index_error(folder, R"({"a":"1.safetensors","b":"3.safetensors"})"), {index, "3.safetensors"});
  expect_named(index_error(folder, R"({"a":"2.safetensors","b":"1.safetensors"})"),
               {index, "a is not in 2.safetensors, but in 1.safetensors"});
  expect_named(index_error(folder, R"({"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"})"),
               {index, "c is not in 2.safetensors"});
  expect_named(index_error(folder, R"({"a":"1.safetensors","b":"2.safetensors"})", "a"), {"2.safetensors: a", "1.safetensors"});
  expect_named(index_error(folder, R"({"a":"1.safetensors","c":"2.safetensors"})", "d"), {index, "c is not in 2.safetensors"});
  write_file_atomic(folder / "1.safetensors",
                    file_bytes("{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("z", "U8", "[1]", "[1,2]") + "}", "xx"));
  write_file_atomic(folder / index, R"({"weight_map":{"a":"1.safetensors"}})");
  expect_named(open_error(folder.path()), {"1.safetensors: z", index});
}

TEST(Safetensors, WritesTheBytesOfHuggingFace) {
  const TestFolder folder;
  const std::vector<float> b = {1, -2};
  const std::vector<uint8_t> raw = {7};
  const std::vector<int64_t> n = {3};
  const std::vector<Bf16> a = {Bf16(1.0f)};
  write_safetensors(folder / "x.safetensors",
                    {{"raw", Dtype::u8, {1}, raw.data()},
                     {"z.\"q\"", Dtype::bf16, {1, 1}, a.data()},
                     {"b", Dtype::f32, {2}, b.data()},
                     {"n", Dtype::i64, {}, n.data()},
                     {"a.none", Dtype::f32, {0, 4}, nullptr}},
                    {{"format", "pt"}});
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("a.none":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},)"
      R"("z.\"q\"":{"dtype":"BF16","shape":[1,1],"data_offsets":[16,18]},"raw":{"dtype":"U8","shape":[1],"data_offsets":[18,19]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  const std::string data("\3\0\0\0\0\0\0\0\0\0\x80\x3f\0\0\0\xc0\x80\x3f\7", 19);
  EXPECT_EQ(read_file(folder / "x.safetensors"), file_bytes(padded, data));
}

TEST(Safetensors, FailedWritesKeepTheOldFile) {
  const TestFolder folder;
  const std::string path = folder / "x.safetensors";
  const float one = 1;
  write_safetensors(path, {{"a", Dtype::f32, {1}, &one}}, {});
  const std::string before = read_file(path);
  const auto none = [](const TensorToWrite&) -> std::span<const std::byte> { throw Error("no bytes"); };
  EXPECT_THROW(write_safetensors(path, {{"a", Dtype::f32, {1}, nullptr}}, {}, none), Error);
  EXPECT_THROW(write_safetensors(path, {{"a", Dtype::f32, {1}, &one}, {"a", Dtype::f32, {1}, &one}}, {}), Error);
  EXPECT_THROW(write_safetensors(path, {{"__metadata__", Dtype::f32, {1}, &one}}, {}), Error);
  EXPECT_THROW(write_safetensors(folder / "none/x.safetensors", {{"a", Dtype::f32, {1}, &one}}, {}), Error);
  EXPECT_EQ(read_file(path), before);
  EXPECT_EQ(list_folder(folder.path()), std::vector<std::string>{"x.safetensors"});
}

TEST(Safetensors, PiecesComeInTheOrderOfTheFile) {
  const TestFolder folder;
  std::vector<std::string> asked;
  std::vector<float> piece;
  write_safetensors(folder / "x.safetensors",
                    {{"b", Dtype::bf16, {2}, nullptr}, {"c", Dtype::f32, {1}, nullptr}, {"a", Dtype::f32, {3}, nullptr}}, {},
                    [&](const TensorToWrite& t) {
                      asked.push_back(t.name);
                      piece.assign(t.name == "a" ? 3 : 1, float(t.name[0]));
                      return std::as_bytes(std::span(piece));
                    });
  EXPECT_EQ(asked, (std::vector<std::string>{"a", "c", "b"}));
  EXPECT_EQ(TensorFiles::open(folder / "x.safetensors").get("c").shape_text(), "[1]");
}

// A tensor whose elements are all 2^16 patterns, at an odd address.
struct AllHalves {
  explicit AllHalves(Dtype dtype) : memory(1 + (2 << 16)) {
    for (uint32_t i = 0; i < 65536; ++i) {
      const auto bits = uint16_t(i);
      std::memcpy(memory.data() + 1 + size_t(2) * i, &bits, 2);
    }
    tensor = {.name = "t",
              .dtype_name = std::string(name_of(dtype)),
              .dtype = dtype,
              .shape = {65536},
              .data = memory.data() + 1,
              .bytes = 131072};
  }
  std::vector<std::byte> memory;
  StoredTensor tensor;
};

Tensor host(std::vector<float>& v) { return {.data = v.data(), .dtype = Dtype::f32, .shape = {int64_t(v.size())}}; }
Tensor host(std::vector<Bf16>& v) { return {.data = v.data(), .dtype = Dtype::bf16, .shape = {int64_t(v.size())}}; }

TEST(ReadElements, EveryHalfIsExact) {
  const AllHalves f16(Dtype::f16), bf16(Dtype::bf16);
  std::vector<float> a(65536), b(65536);
  std::vector<Bf16> c(65536);
  read_elements(host(a), f16.tensor, 0, 65536);
  read_elements(host(b), bf16.tensor, 0, 65536);
  read_elements(host(c), f16.tensor, 0, 65536);
  for (uint32_t i = 0; i < 65536; ++i) {
    F16 half;
    half.bits = uint16_t(i);
    const float expected = half;
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(a[i]) && std::isnan(float(c[i])));
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(expected));
      EXPECT_EQ(c[i].bits, Bf16(expected).bits);
    }
    EXPECT_EQ(std::bit_cast<uint32_t>(b[i]), i << 16);
  }
}

TEST(ReadElements, RangesOfUnalignedF32) {
  const Rng rng(7, Purpose::init);
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = rng.normal(i);
  values[3] = 1.00390625f;  // halfway between two bf16: to even, 1
  values[4] = 1.01171875f;  // halfway: to even, 1.015625
  std::vector<std::byte> memory(4003);
  std::memcpy(memory.data() + 3, values.data(), 4000);
  const StoredTensor t{.name = "t", .dtype_name = "F32", .dtype = Dtype::f32, .shape = {10, 100}, .data = memory.data() + 3, .bytes = 4000};
  std::vector<float> a(501);
  std::vector<Bf16> b(1000);
  read_elements(host(a), t, 499, 501);
  read_elements(host(b), t, 0, 1000);
  EXPECT_TRUE(std::equal(a.begin(), a.end(), values.begin() + 499));
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(b[i].bits, Bf16(values[i]).bits);
  EXPECT_EQ(float(b[3]), 1.0f);
  EXPECT_EQ(float(b[4]), 1.015625f);
}

TEST(ReadElements, OtherDtypesAreRefusedByName) {
  const StoredTensor t{.name = "norm.weight", .dtype_name = "I32", .dtype = Dtype::i32, .shape = {1}};
  std::vector<float> out(1);
  try {
    read_elements(host(out), t, 0, 1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("norm.weight: dtype I32"), std::string::npos) << e.what();
  }
}

TEST(StoredTensor, ViewsAreWhereTheBytesLie) {
  const AllHalves odd(Dtype::bf16);
  EXPECT_TRUE(odd.tensor.view(0, 65536, nullptr).empty());
  StoredTensor even = odd.tensor;
  even.data += 1;
  const Tensor view = even.view(10, 65525, nullptr);
  EXPECT_EQ(view.data, even.data + 20);
  EXPECT_EQ(view.dtype, Dtype::bf16);
  EXPECT_EQ(view.size(), 65525);
  even.known_dtype = false;
  EXPECT_TRUE(even.view(0, 1, nullptr).empty());
}

// Pages of [at, at + bytes) that this process has in memory: bit 63 of their words in /proc/self/pagemap.
size_t pages_held(const std::byte* at, size_t bytes) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE)), first = reinterpret_cast<size_t>(at) / page;
  std::vector<uint64_t> words((bytes + page - 1) / page);
  std::ifstream map("/proc/self/pagemap", std::ios::binary);
  map.seekg(std::streamoff(first * sizeof(uint64_t)));
  map.read(reinterpret_cast<char*>(words.data()), std::streamsize(words.size() * sizeof(uint64_t)));
  return size_t(std::count_if(words.begin(), words.end(), [](uint64_t word) { return word >> 63; }));
}

TEST(StoredTensor, ForgottenElementsLeaveMemory) {
  const TestFolder folder;
  const int64_t n = int64_t(1) << 20;
  const std::vector<float> values(size_t(n), 1.5f);
  write_safetensors(folder / "x.safetensors", {{"a", Dtype::f32, {n}, values.data()}, {"b", Dtype::f32, {n}, values.data()}}, {});
  const TensorFiles files = TensorFiles::open(folder / "x.safetensors");
  const StoredTensor &a = files.get("a"), &b = files.get("b");
  std::vector<float> read(size_t(n), 0);
  for (const StoredTensor* t : {&a, &b}) {
    read_elements(host(read), *t, 0, n);
    ASSERT_GT(pages_held(t->data, t->bytes), 500u);
  }
  const size_t of_b = pages_held(b.data, b.bytes);
  a.forget(0, n);
  EXPECT_LE(pages_held(a.data, a.bytes), 2u);  // the ends of its range share pages with others
  EXPECT_GE(pages_held(b.data, b.bytes) + 2, of_b);
  EXPECT_EQ(a.view(n - 1, 1, nullptr).as<float>()[0], 1.5f);
}

}  // namespace
}  // namespace tessera
