// Checkpoints of ours and of PyTorch become adapters and models with the same bits; what is damaged is named and leaves nothing behind.
#include "train/consolidate.h"

#include <gtest/gtest.h>

#include "core/text.h"
#include "testing/golden.h"
#include "testing/test_folder.h"
#include "train/checkpoint_files.h"

namespace tessera {
namespace {

const std::string golden = "golden/train/checkpoints/";

void expect_says(const std::string& error, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(error.find(part), std::string::npos) << "\"" << part << "\" is not in:\n" << error;
}

// Every tensor's name, dtype, shape and bytes.
std::map<std::string, std::string> tensors_of(const std::string& path) {
  std::map<std::string, std::string> out;
  const TensorFiles files = TensorFiles::open(path);
  for (const auto& [name, t] : files.all()) out[name] = str(t.dtype_name, " ", t.shape_text(), " ", sha256_of(t.data, t.bytes));
  return out;
}

class Consolidate : public testing::Test {
 protected:
  std::string error(const ConsolidateRequest& r) const {
    const std::string what = error_of([&] { consolidate(r); });
    EXPECT_FALSE(file_exists(r.to + "/adapter_config.json") || folder_exists(r.to + ".tmp")) << "something was left behind";
    return what;
  }
  std::string out() const { return folder_ / "out"; }
  TestFolder folder_;
};

class ConsolidateTorch : public Consolidate {
 protected:
  void SetUp() override { NEEDS_SHARED(); }
  std::string adapter_config(int rank = 4) const {
    write_file_atomic(folder_ / "adapter_config.json", str(R"({"peft_type": "LORA", "r": )", rank, R"(, "lora_alpha": 8})"));
    return folder_ / "adapter_config.json";
  }
};

TEST_F(ConsolidateTorch, Adapters) {
  for (const std::string name : {"lora_fsdp1_sharded", "lora_fsdp2_sharded/pytorch_model_fsdp_0", "lora_fsdp1_full"}) {
    SCOPED_TRACE(name);
    const std::string config = adapter_config(), to = folder_ / replace_all(name, "/", "_");
    const Consolidated made = consolidate({shared(golden + name), to, "", config, ""});
    EXPECT_EQ(made.what, "adapter");
    EXPECT_EQ(made.tensors, 20);
    EXPECT_EQ(made.note, "");
    EXPECT_EQ(list_folder(to), (std::vector<std::string>{"adapter_config.json", "adapter_model.safetensors"}));
    EXPECT_EQ(read_file(to + "/adapter_config.json"), read_file(config));
    EXPECT_EQ(tensors_of(to + "/adapter_model.safetensors"), tensors_of(shared(golden + name.substr(0, 10) + ".safetensors")));
  }
}

TEST_F(ConsolidateTorch, Models) {
  const std::string config = shared(golden + "full_config");
  for (const std::string name : {"full_fsdp1_sharded", "full_fsdp2_sharded", "full_fsdp1_full/pytorch_model_fsdp.bin"}) {
    SCOPED_TRACE(name);
    const std::string to = folder_ / name.substr(0, 13);
    EXPECT_EQ(consolidate({shared(golden + name), to, config, "", ""}).what, "model");
    EXPECT_EQ(tensors_of(to), tensors_of(shared(golden + name.substr(0, 10) + ".safetensors")));
    EXPECT_NE(read_file(to + "/config.json").find(R"("torch_dtype": "float32")"), std::string::npos);
  }
}

TEST_F(ConsolidateTorch, ModelInAnotherDtype) {
  consolidate({shared(golden + "full_fsdp2_sharded"), out(), shared(golden + "full_config"), "", "bf16"});
  const TensorFiles made = TensorFiles::open(out()), truth = TensorFiles::open(shared(golden + "full_fsdp2.safetensors"));
  EXPECT_NE(read_file(out() + "/config.json").find(R"("torch_dtype": "bfloat16")"), std::string::npos);
  ASSERT_EQ(made.all().size(), truth.all().size());
  for (const auto& [name, t] : made.all()) {
    std::vector<Bf16> expected(size_t(t.size()));
    read_elements({expected.data(), Dtype::bf16, {t.size()}, nullptr}, truth.get(name), 0, t.size());
    EXPECT_EQ(sha256_of(t.data, t.bytes), sha256_of(expected)) << name;
  }
}

TEST_F(ConsolidateTorch, Optimizers) {
  for (const std::string name : {"lora_fsdp1_sharded/optimizer_0", "lora_fsdp1_full/optimizer.bin"}) {
    const std::string to = folder_ / name.substr(0, 15);
    EXPECT_EQ(consolidate({shared(golden + name), to, "", "", ""}).what, "optimizer");
    EXPECT_EQ(tensors_of(to + "/optimizer.safetensors"), tensors_of(shared(golden + "lora_fsdp1_optimizer.safetensors")));
  }
}

TEST_F(ConsolidateTorch, WhatIsMissingIsAskedFor) {
  expect_says(error({shared(golden + "lora_fsdp2_sharded"), out(), "", "", ""}), {"adapter_config.json", "--adapter_config FOLDER"});
  expect_says(error({shared(golden + "full_fsdp2_sharded"), out(), "", "", ""}), {"config.json", "--model FOLDER"});
  expect_says(error({shared(golden + "lora_fsdp2_sharded"), out(), "", adapter_config(8), ""}),
              {"r is 8", "4, as base_model.model.model.layers.0"});
}

// A sharded checkpoint of two tensors; "a" lies in both shards.
class ConsolidateOurs : public Consolidate {
 protected:
  ConsolidateOurs() {
    for (int i = 0; i < 18; ++i) values_.push_back(float(i) + 0.123456789f);
  }
  std::string checkpoint(int step) const {
    const std::string folder = folder_ / str("run/checkpoint-", step);
    make_folder(folder);
    CheckpointManifest m;
    m.program = "tessera", m.sharded = true, m.step = step, m.ranks = 2, m.strategy = "full_shard", m.train_type = "lora";
    m.model = folder_ / "base", m.epoch_order_sha256 = std::string(64, 'a');
    m.tensors["a.lora_A.weight"] = {{2, 5}, {{"shard-00001-of-00002.safetensors", 0, 4}, {"shard-00002-of-00002.safetensors", 4, 10}}};
    m.tensors["b.lora_B.weight"] = {{8}, {{"shard-00002-of-00002.safetensors", 0, 8}}};
    std::map<std::string, std::vector<TensorToWrite>> files;
    for (const auto& [name, tensor] : m.tensors)
      for (const CheckpointPiece& p : tensor.pieces)
        for (const char* state : {"values:", "exp_avg:", "exp_avg_sq:"})
          files[p.file].push_back({state + name, Dtype::f32, {p.end - p.begin}, values_.data() + (name[0] == 'a' ? 0 : 10) + p.begin});
    for (const auto& [name, tensors] : files) write_safetensors(folder + "/" + name, tensors, {});
    write_file_atomic(folder + "/adapter_config.json", "{}");
    for (const std::string& name : list_folder(folder))
      m.files[name] = {MappedFile(folder + "/" + name).size(), sha256_file(folder + "/" + name)};
    write_file_atomic(folder + "/checkpoint.json", checkpoint_manifest_text(m));
    return folder;
  }
  std::vector<float> values_;
};

TEST_F(ConsolidateOurs, ShardsBecomeTheFileAWholeRunWrites) {
  checkpoint(5), checkpoint(20);
  const Consolidated made = consolidate({folder_ / "run/", out() + "/", "", "", ""});
  EXPECT_EQ(made.from, folder_ / "run/checkpoint-20") << "the newest";
  EXPECT_EQ(made.bytes, 72u);
  write_safetensors(folder_ / "expected.safetensors",
                    {{"base_model.model.a.lora_A.weight", Dtype::f32, {2, 5}, values_.data()},
                     {"base_model.model.b.lora_B.weight", Dtype::f32, {8}, values_.data() + 10}},
                    {{"format", "pt"}});
  EXPECT_EQ(sha256_file(out() + "/adapter_model.safetensors"), sha256_file(folder_ / "expected.safetensors"));
  EXPECT_EQ(read_file(out() + "/adapter_config.json"), "{}");
}

TEST_F(ConsolidateOurs, DamagedOnesAreNamed) {
  const std::string older = checkpoint(5), newest = checkpoint(20), shard = newest + "/shard-00002-of-00002.safetensors";
  std::string bytes = read_file(shard);
  bytes.back() ^= 1;
  write_file_atomic(shard, bytes);
  expect_says(error({folder_ / "run", out(), "", "", ""}), {shard, "SHA-256"});
  remove_all(shard);
  expect_says(error({folder_ / "run", out(), "", "", ""}), {newest, shard, "is missing", "name an older one: " + older});
  expect_says(error({newest, out(), "", "", ""}), {shard, "is missing"});
  EXPECT_EQ(consolidate({older, out(), "", "", ""}).tensors, 2);
}

TEST_F(ConsolidateOurs, Targets) {
  const std::string from = checkpoint(5);
  write_file_atomic(folder_ / "file", "x");
  make_folder(out());
  write_file_atomic(out() + "/mine", "x");
  expect_says(error({from, folder_ / "file", "", "", ""}), {"is a file"});
  expect_says(error({from, out(), "", "", ""}), {"holds files", "empty"});
  EXPECT_EQ(read_file(out() + "/mine"), "x");
  remove_all(out() + "/mine");
  consolidate({from, out(), "", "", ""});
  EXPECT_TRUE(file_exists(out() + "/adapter_config.json"));
  make_folder(folder_ / "nothing");
  expect_says(error({folder_ / "nothing", folder_ / "new", "", "", ""}), {"holds no checkpoint", "--save_steps"});
  expect_says(error({folder_ / "nowhere", folder_ / "new", "", "", ""}), {"no such file or folder"});
}

}  // namespace
}  // namespace tessera
