// The reader and the writer against files that Hugging Face's library wrote, and against broken ones.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/text.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "testing/golden.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

// Faults that only show against config.json: the models room refuses these.
const std::set<std::string> seen_with_the_config = {"head_differs_from_embedding", "tensor_missing", "tensor_wrong_shape",
                                                    "tensor_transposed",           "tensor_unknown", "tensor_layer_too_many",
                                                    "dtype_not_for_weights"};

bool is_about_the_file(const Json& test) {
  const std::string folder = test["folder"];
  return test["must"] == "refuse" && folder != "no_config" && !starts_with(folder, "config_") && !seen_with_the_config.contains(folder);
}

TEST(SafetensorsGolden, BrokenFilesAreRefusedByName) {
  NEEDS_SHARED();
  const Json list = parse_json(shared_text("golden/models/broken/broken.json"), "broken.json");
  int refused = 0, loaded = 0;
  for (const Json& test : list["cases"]) {
    const std::string folder = test["folder"];
    std::string error;
    try {
      TensorFiles::open(shared("golden/models/broken/" + folder));
    } catch (const Error& e) {
      error = e.what();
    }
    EXPECT_EQ(!error.empty(), is_about_the_file(test)) << folder << ": " << error;
    if (error.empty()) {
      ++loaded;
      continue;
    }
    ++refused;
    for (const Json& name : test["error_must_name"])
      EXPECT_NE(error.find(name), std::string::npos) << folder << " lacks " << name << ": " << error;
  }
  EXPECT_EQ(refused, 21);
  EXPECT_EQ(loaded, 26);
}

TEST(SafetensorsGolden, UnalignedAndUnorderedFilesHoldTheSameTensors) {
  NEEDS_SHARED();
  const TensorFiles good = TensorFiles::open(shared("golden/models/broken/good"));
  for (const char* other : {"good_header_unaligned", "good_header_unordered", "good_without_metadata"}) {
    const TensorFiles files = TensorFiles::open(shared(std::string("golden/models/broken/") + other));
    ASSERT_EQ(files.all().size(), good.all().size());
    for (const auto& [name, expected] : good.all()) {
      const StoredTensor& found = files.get(name);
      std::vector<float> a(size_t(expected.size())), b(a.size());
      const auto host = [](std::vector<float>& v) { return Tensor{.data = v.data(), .shape = {int64_t(v.size())}}; };
      read_elements(host(a), expected, 0, expected.size());
      read_elements(host(b), found, 0, found.size());
      EXPECT_EQ(a, b) << other << " " << name;
    }
  }
}

// What is read from one file, written again; nothing when the file holds a dtype that we do not write.
bool rewrite(const std::string& from, const std::string& to) {
  const TensorFiles files = TensorFiles::open(from);
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, t] : files.all()) {
    if (!t.known_dtype) return false;
    tensors.push_back({name, t.dtype, t.shape, t.data});
  }
  write_safetensors(to, tensors, files.metadata());
  return true;
}

TEST(SafetensorsGolden, RewrittenFilesHaveTheSameBytes) {
  NEEDS_SHARED();
  const TestFolder folder;
  std::vector<std::string> paths = {"golden/quant/optim/adamw_8bit.safetensors",      // F64 F32 BF16 U8
                                    "golden/quant/bnb_4bit/nested.safetensors",       // F32 BF16 F16 U8, sorted by size and then name
                                    "golden/quant/hqq/layer_3bit_axis0.safetensors",  // I64 I32 F32 BF16 U8
                                    "golden/models/llama_mha_untied/expected.safetensors",
                                    "golden/models/llama_gqa_tied_llama3rope_bfloat16/model.safetensors"};
  for (const std::string& adapter : list_folder(shared("golden/train/adapters"))) {
    paths.push_back("golden/train/adapters/" + adapter + "/adapter_model.safetensors");
  }
  EXPECT_EQ(paths.size(), 5 + 19u);
  for (const std::string& path : paths) {
    ASSERT_TRUE(rewrite(shared(path), folder / "x.safetensors")) << path;
    EXPECT_TRUE(shared_text(path) == read_file(folder / "x.safetensors")) << path;
  }
}

}  // namespace
}  // namespace tessera
