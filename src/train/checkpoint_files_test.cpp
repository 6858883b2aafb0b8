// The manifest is believed only when all of it fits; the reader puts the pieces of tensors together.
#include "train/checkpoint_files.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "testing/test_folder.h"

namespace tessera {
namespace {

using ManifestJson = nlohmann::ordered_json;

const std::string hash(64, 'a');

// A tensor of 2 x 5 elements, element i of state s being 100 * s + i, cut at 4 into two files.
CheckpointManifest write_sharded(const std::string& folder) {
  make_folder(folder);
  const char* states[] = {"values", "exp_avg", "exp_avg_sq"};
  std::vector<std::vector<float>> numbers;
  for (int s = 0; s < 3; ++s)
    for (int i = 0; i < 10; ++i) {
      if (i == 0) numbers.emplace_back();
      numbers.back().push_back(float(100 * s + i));
    }
  CheckpointManifest m;
  m.program = "tessera", m.sharded = true, m.step = 7, m.ranks = 2, m.micro_batches = 12, m.seed = UINT64_MAX;
  m.strategy = "full_shard", m.train_type = "lora", m.model = "/models/x", m.epoch_order_sha256 = hash;
  m.run = {{"lr", "0.1"}}, m.configuration = {{"dataset", "rows \"a\""}};
  m.base_files["model.safetensors"] = {12, hash}, m.data_files["/data/rows.jsonl"] = {34, hash};
  m.best_step = 3, m.best_eval_loss = 0.1;
  CheckpointTensor& t = m.tensors["a.weight"] = {{2, 5}, {}};
  for (const auto& [file, begin, end] : {std::tuple("shard-1.safetensors", 0, 4), {"shard-2.safetensors", 4, 10}}) {
    std::vector<TensorToWrite> tensors;
    for (int s = 0; s < 3; ++s)
      tensors.push_back({std::string(states[s]) + ":a.weight", Dtype::f32, {end - begin}, numbers[size_t(s)].data() + begin});
    const std::string path = folder + "/" + file;
    write_safetensors(path, tensors, {});
    t.pieces.push_back({file, begin, end});
    m.files[file] = {MappedFile(path).size(), sha256_file(path)};
  }
  write_file_atomic(folder + "/checkpoint.json", checkpoint_manifest_text(m));
  return m;
}

TEST(CheckpointFiles, ManifestComesBack) {
  const TestFolder folder;
  const CheckpointManifest m = write_sharded(folder / "checkpoint-7");
  EXPECT_EQ(parse_checkpoint_manifest(checkpoint_manifest_text(m), "there"), m);
  EXPECT_EQ(read_checkpoint_manifest(folder / "checkpoint-7"), m);
  check_checkpoint_files(m, folder / "checkpoint-7");
}

TEST(CheckpointFiles, ReaderPutsPiecesTogether) {
  const TestFolder folder;
  write_sharded(folder / "checkpoint-7");
  const CheckpointReader reader = CheckpointReader::open(folder / "checkpoint-7");
  EXPECT_EQ(reader.tensors().at("a.weight"), (std::vector<int64_t>{2, 5}));
  for (int64_t begin = 0; begin < 10; ++begin)
    for (int64_t end = begin; end <= 10; ++end) {
      std::vector<float> got(size_t(end - begin), -1), expected;
      for (int64_t i = begin; i < end; ++i) expected.push_back(float(200 + i));
      reader.read("exp_avg_sq", "a.weight", begin, end - begin, got.data());
      EXPECT_EQ(got, expected);
    }
  float none = 0;
  EXPECT_NE(error_of([&] { reader.read("values", "b", 0, 1, &none); }).find("holds no values of b"), std::string::npos);
}

// Each change makes a manifest that must be refused with these words.
TEST(CheckpointFiles, WhatDoesNotFitIsRefused) {
  const TestFolder folder;
  const ManifestJson good = ManifestJson::parse(checkpoint_manifest_text(write_sharded(folder / "checkpoint-7")));
  const auto refused = [&](const char* words, auto change) {
    ManifestJson json = good;
    change(json);
    const std::string error = error_of([&] { parse_checkpoint_manifest(json.dump(), "there"); });
    EXPECT_NE(error.find(words), std::string::npos) << words << "\n" << error;
  };
  refused("format", [](ManifestJson& j) { j["format"] = 1; });
  refused("no key \"kind\"", [](ManifestJson& j) { j.erase("kind"); });
  refused("kind", [](ManifestJson& j) { j["kind"] = "LOCAL_STATE_DICT"; });
  refused("step", [](ManifestJson& j) { j["step"] = -1; });
  refused("step", [](ManifestJson& j) { j["step"] = 1.5; });
  refused("step", [](ManifestJson& j) { j["step"] = UINT64_MAX; });
  refused("ranks", [](ManifestJson& j) { j["ranks"] = 0; });
  refused("seed", [](ManifestJson& j) { j["rng"]["seed"] = "1"; });
  refused("epoch_order_sha256", [](ManifestJson& j) { j["epoch_order_sha256"] = "xyz"; });
  refused("run: lr", [](ManifestJson& j) { j["run"]["lr"] = 0.1; });
  refused("files", [](ManifestJson& j) { j["files"] = ManifestJson::array(); });
  refused("name of a file", [](ManifestJson& j) { j["files"]["../model.safetensors"] = j["files"].front(); });
  refused("name of a file", [](ManifestJson& j) { j["files"][".."] = j["files"].front(); });
  refused("name of a file", [](ManifestJson& j) { j["files"]["checkpoint.json"] = j["files"].front(); });
  refused("1 to 4 sizes", [](ManifestJson& j) { j["tensors"]["a.weight"]["shape"] = ManifestJson::array(); });
  refused("elements", [](ManifestJson& j) { j["tensors"]["a.weight"]["shape"] = {1 << 30, 1 << 30, 1 << 30, 1 << 30}; });
  refused("cover 9", [](ManifestJson& j) { j["tensors"]["a.weight"]["shape"] = {3, 3}; });
  refused("begins at 0", [](ManifestJson& j) { j["tensors"]["a.weight"]["pieces"][0]["begin"] = 1; });
  refused("begins at 4", [](ManifestJson& j) { j["tensors"]["a.weight"]["pieces"][1]["begin"] = 3; });
  refused("\"files\"", [](ManifestJson& j) { j["tensors"]["a.weight"]["pieces"][1]["file"] = "shard-3.safetensors"; });
  refused("one piece", [](ManifestJson& j) { j["tensors"]["a.weight"]["pieces"][1]["file"] = "shard-1.safetensors"; });
  const std::string text = good.dump();
  for (size_t n = 0; n < text.size(); n += 7) EXPECT_NE(error_of([&] { parse_checkpoint_manifest(text.substr(0, n), "there"); }), "");
}

// Found by what their manifests say, in order of steps; what is damaged is listed with its fault.
TEST(CheckpointFiles, Listing) {
  const TestFolder folder;
  write_sharded(folder / "checkpoint-renamed");
  write_sharded(folder / "checkpoint-9");
  write_sharded(folder / "checkpoint-8.tmp");
  make_folder(folder / "checkpoint-12");
  write_file_atomic(folder / "checkpoint-9/shard-2.safetensors", "short");
  const auto all = list_checkpoints(folder.path());
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].step, 7);
  EXPECT_EQ(all[0].fault, "");
  EXPECT_EQ(all[1].step, 9);
  EXPECT_NE(all[1].fault.find("shard-2.safetensors"), std::string::npos) << all[1].fault;
  EXPECT_EQ(valid_checkpoints(folder.path()).size(), 1u);
}

TEST(CheckpointFiles, DamagedBytesAreNamed) {
  const TestFolder folder;
  const CheckpointManifest m = write_sharded(folder / "checkpoint-7");
  const std::string path = folder / "checkpoint-7/shard-1.safetensors";
  std::string bytes = read_file(path);
  bytes.back() = char(bytes.back() ^ 1);
  write_file_atomic(path, bytes);
  EXPECT_NE(error_of([&] { check_checkpoint_files(m, folder / "checkpoint-7"); }).find("shard-1.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace tessera
