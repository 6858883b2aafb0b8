// Headers and indexes that lie: refused with four parts, whatever the numbers.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "core/text.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

std::string file_with(const std::string& header, const std::string& data = "", uint64_t claimed = 0) {
  const uint64_t length = claimed ? claimed : header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}

std::string refusal(const TestFolder& folder, const std::string& bytes) {
  write_file_atomic(folder / "x.safetensors", bytes);
  return error_of([&] { TensorFiles::open(folder / "x.safetensors"); });
}

void expect_refused(const std::string& error, const std::string& part) {
  EXPECT_NE(error.find(part), error.npos) << part << " in " << error;
  EXPECT_NE(error.find("\n  allowed: "), error.npos) << error;
  EXPECT_NE(error.find("\n  do this: "), error.npos) << error;
  EXPECT_LT(error.size(), 20000u);
}

TEST(HostileHeader, LengthsDoNotWrap) {
  const TestFolder folder;
  for (const uint64_t length : {uint64_t(3), uint64_t(99'999'999), ~uint64_t(0), ~uint64_t(0) - 7, ~uint64_t(0) - 8, uint64_t(1) << 63})
    expect_refused(refusal(folder, file_with("{}", "", length)), "a header of");
}

TEST(HostileHeader, OffsetsAndShapesDoNotWrap) {
  const TestFolder folder;
  const auto tensor = [&](const std::string& shape, const std::string& offsets) {
    return refusal(folder, file_with(R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}", "12345678"));
  };
  expect_refused(tensor("[2]", "[0,18446744073709551615]"), "data_offsets");
  expect_refused(tensor("[2]", "[18446744073709551608,0]"), "data_offsets");
  expect_refused(tensor("[2]", "[18446744073709551608,18446744073709551615]"), "data_offsets");
  expect_refused(tensor("[4611686018427387904,4]", "[0,0]"), "shape");
  expect_refused(tensor("[2305843009213693952,2]", "[0,8]"), "shape");
  expect_refused(tensor("[9007199254740992,9007199254740992,0]", "[0,0]"), "shape");
  expect_refused(tensor("[0,9007199254740992,9007199254740992]", "[0,0]"), "shape");
  expect_refused(tensor("[-1]", "[0,8]"), "shape");
  expect_refused(tensor("[9223372036854775808]", "[0,8]"), "shape");
  expect_refused(tensor("[1e300]", "[0,8]"), "shape");
}

TEST(HostileHeader, MessagesAreShortAndPlain) {
  const TestFolder folder;
  std::string sizes;
  for (int i = 0; i < 30'000; ++i) sizes += "1.5,";
  const std::string error =
      refusal(folder, file_with(R"({"\u001b[2J":{"dtype":"F32","shape":[)" + sizes + R"(2],"data_offsets":[0,4]}})", "1234"));
  expect_refused(error, "\\x1B[2J");
  EXPECT_EQ(error.find('\x1b'), error.npos);
}

TEST(HostileIndex, NamesStayInTheFolder) {
  const TestFolder folder;
  make_folder(folder / "model");
  const std::string tensors = file_with(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x");
  write_file_atomic(folder / "outside.safetensors", tensors);
  std::filesystem::create_directory_symlink(folder.path(), folder / "model/link");
  for (const char* name : {"../outside.safetensors", "link/outside.safetensors", "./../outside.safetensors", "/etc/hostname", "", ".", "..",
                           "model.safetensors\\u0000"}) {
    write_file_atomic(folder / "model/model.safetensors.index.json", str(R"({"weight_map":{"a":")", name, "\"}}"));
    expect_refused(error_of([&] { TensorFiles::open(folder / "model"); }), "the name of a file in the model's folder");
  }
  // Hugging Face's cache has links for files; those of the folder itself are followed.
  std::filesystem::create_symlink(folder / "outside.safetensors", folder / "model/1.safetensors");
  write_file_atomic(folder / "model/model.safetensors.index.json", R"({"weight_map":{"a":"1.safetensors"}})");
  EXPECT_EQ(TensorFiles::open(folder / "model").get("a").bytes, 1u);
}

}  // namespace
}  // namespace tessera
