// PyTorch's checkpoints, written by torch 2.12 and accelerate 1.15, against the same tensors in safetensors files; and damaged ones.
#include "io/torch_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>

#include "core/rng.h"
#include "core/text.h"
#include "io/pickle.h"
#include "io/safetensors.h"
#include "io/stored_zip.h"
#include "testing/golden.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

const std::string golden = "golden/train/checkpoints/";

std::vector<std::byte> value(TorchCheckpoint& from, const TorchTensor& t) {
  std::vector<std::byte> out(checked_bytes(t.shape, t.dtype, ""));
  from.read(t, out);
  return out;
}

// NAME to dtype, shape and bytes.
using Contents = std::map<std::string, std::string>;
std::string describe(std::string_view dtype, const std::vector<int64_t>& shape, const void* data, size_t bytes) {
  return str(dtype, " ", shape_text(shape), " ", sha256_of(data, bytes));
}

Contents contents_of(TorchCheckpoint& from, size_t leading_keys) {
  Contents out;
  for (const TorchTensor& t : from.tensors()) {
    const auto bytes = value(from, t);
    const std::vector<std::string> rest(t.path.begin() + ptrdiff_t(leading_keys), t.path.end());
    out[join(rest, ".")] = describe(name_of(t.dtype), t.shape, bytes.data(), bytes.size());
  }
  return out;
}

Contents truth(const std::string& name) {
  Contents out;
  const GoldenFile file(golden + name);
  for (const std::string& key : file.names()) {
    const auto bytes = file.bytes(key);
    out[key] = describe(file.dtype(key), file.sizes(key), bytes.data(), bytes.size());
  }
  return out;
}

// optimizer.state.NAME.exp_avg as "exp_avg:NAME".
Contents states_of(TorchCheckpoint& from, size_t leading_keys) {
  Contents out;
  for (const auto& [name, what] : contents_of(from, leading_keys)) {
    const size_t dot = name.rfind('.');
    out[str(name.substr(dot + 1), ":", name.substr(0, dot))] = what;
  }
  return out;
}

TEST(TorchCheckpoint, ShardedFoldersHaveTheConsolidatedTensors) {
  NEEDS_SHARED();
  for (const std::string name : {"lora_fsdp1", "lora_fsdp2", "full_fsdp1", "full_fsdp2"}) {
    SCOPED_TRACE(name);
    const std::string folder = shared(str(golden, name, "_sharded/pytorch_model_fsdp_0"));
    ASSERT_TRUE(TorchCheckpoint::present(folder));
    TorchCheckpoint checkpoint = TorchCheckpoint::open(folder);
    for (const TorchTensor& t : checkpoint.tensors()) EXPECT_EQ(t.path.at(0), "model");
    EXPECT_EQ(contents_of(checkpoint, 1), truth(name + ".safetensors"));
  }
}

TEST(TorchCheckpoint, ShardedOptimizer) {
  NEEDS_SHARED();
  TorchCheckpoint checkpoint = TorchCheckpoint::open(shared(golden + "lora_fsdp1_sharded/optimizer_0"));
  EXPECT_EQ(states_of(checkpoint, 2), truth("lora_fsdp1_optimizer.safetensors"));
}

TEST(TorchCheckpoint, FilesOfTorchSave) {
  NEEDS_SHARED();
  for (const std::string name : {"lora_fsdp1", "full_fsdp1"}) {
    TorchCheckpoint checkpoint = TorchCheckpoint::open(shared(str(golden, name, "_full/pytorch_model_fsdp.bin")));
    EXPECT_EQ(contents_of(checkpoint, 0), truth(name + ".safetensors"));
  }
  TorchCheckpoint optimizer = TorchCheckpoint::open(shared(golden + "lora_fsdp1_full/optimizer.bin"));
  EXPECT_EQ(states_of(optimizer, 1), truth("lora_fsdp1_optimizer.safetensors"));
}

// Writes pickles and archives as torch does, as far as a checkpoint of one tensor needs.
std::string bytes_of(auto value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }
std::string number(int64_t n) { return "\x8a\x08" + bytes_of(n); }
std::string text(const std::string& s) { return "X" + bytes_of(uint32_t(s.size())) + s; }
std::string global(const std::string& module, const std::string& name) { return str("c", module, "\n", name, "\n"); }
std::string tuple(const std::vector<std::string>& items) { return "(" + join(items, "") + "t"; }
std::string numbers(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const int64_t v : values) items.push_back(number(v));
  return tuple(items);
}
std::string dict(const std::vector<std::string>& items) { return "}(" + join(items, "") + "u"; }
std::string size(const std::vector<int64_t>& values) { return global("torch", "Size") + tuple({numbers(values)}) + "R"; }
std::string object(const std::string& name, const std::string& state, const std::string& module = "metadata") {
  return global("torch.distributed.checkpoint." + module, name) + ")\x81" + state + "b";
}

std::string archive(const std::map<std::string, std::string>& members) {
  std::string out, directory;
  for (const auto& [name, content] : members) {
    const std::string facts = bytes_of(crc32(0, std::as_bytes(std::span(content)))) + bytes_of(uint32_t(content.size())) +
                              bytes_of(uint32_t(content.size())) + bytes_of(uint16_t(name.size())) + bytes_of(uint16_t(0));
    directory += "PK\x01\x02" + std::string(12, '\0') + facts + std::string(10, '\0') + bytes_of(uint32_t(out.size())) + name;
    out += "PK\x03\x04" + std::string(10, '\0') + facts + name + content;
  }
  const auto count = bytes_of(uint16_t(members.size()));
  return out + directory + "PK\x05\x06" + std::string(4, '\0') + count + count + bytes_of(uint32_t(directory.size())) +
         bytes_of(uint32_t(out.size())) + std::string(2, '\0');
}

// A bf16 chunk of rows x columns whose elements are `values`.
std::string chunk_stream(int64_t rows, int64_t columns, const std::vector<Bf16>& values) {
  const std::string storage =
      tuple({text("storage"), global("torch", "BFloat16Storage"), text("0"), text("cpu"), number(rows * columns)}) + "Q";
  const std::string program = "\x80\x02" + global("torch._utils", "_rebuild_tensor_v2") +
                              tuple({storage, number(0), numbers({rows, columns}), numbers({columns, 1}), "\x89", "N"}) + "R.";
  return archive({{"archive/data.pkl", program}, {"archive/data/0", {reinterpret_cast<const char*>(values.data()), values.size() * 2}}});
}

// Cut in both dimensions, as tensor parallelism does: 5 x 7 into 2 x 2 boxes, all in one file.
TEST(TorchCheckpoint, BoxesOfAGrid) {
  const TestFolder folder;
  std::vector<Bf16> whole;
  for (int i = 0; i < 35; ++i) whole.push_back(float(i));
  std::vector<std::string> chunks, places;
  std::string file;
  for (const auto& [row, rows] : {std::pair{0, 3}, {3, 2}}) {
    for (const auto& [column, columns] : {std::pair{0, 4}, {4, 3}}) {
      std::vector<Bf16> values;
      for (int r = row; r < row + rows; ++r)
        for (int c = column; c < column + columns; ++c) values.push_back(whole[size_t(r * 7 + c)]);
      const std::string stream = chunk_stream(rows, columns, values);
      chunks.push_back(object("ChunkStorageMetadata", dict({text("offsets"), size({row, column}), text("sizes"), size({rows, columns})})));
      places.push_back(
          object("MetadataIndex", dict({text("fqn"), text("w"), text("offset"), size({row, column}), text("index"), number(0)})));
      places.push_back(object("_StorageInfo",
                              dict({text("relative_path"), text("__0_0.distcp"), text("offset"), number(int64_t(file.size())),
                                    text("length"), number(int64_t(stream.size()))}),
                              "filesystem"));
      file += stream;
    }
  }
  const std::string layout = global("torch.serialization", "_get_layout") + tuple({text("torch.strided")}) + "R";
  const std::string properties = object("TensorProperties", tuple({global("torch", "bfloat16"), layout}));
  const std::string tensor =
      object("TensorStorageMetadata",
             dict({text("properties"), properties, text("size"), size({5, 7}), text("chunks"), "](" + join(chunks, "") + "e"}));
  write_file_atomic(folder / "__0_0.distcp", file);
  write_file_atomic(
      folder / ".metadata",
      "\x80\x02" + object("Metadata", dict({text("state_dict_metadata"), dict({text("w"), tensor}), text("storage_data"), dict(places)})) +
          ".");
  TorchCheckpoint checkpoint = TorchCheckpoint::open(folder.path());
  ASSERT_EQ(checkpoint.tensors().size(), 1u);
  EXPECT_EQ(checkpoint.tensors()[0].name(), "w");
  EXPECT_EQ(contents_of(checkpoint, 0)["w"], describe("BF16", {5, 7}, whole.data(), 70));
}

class DamagedCheckpoint : public testing::Test {
 protected:
  void SetUp() override {
    NEEDS_SHARED();
    for (const char* name : {".metadata", "__0_0.distcp", "__1_0.distcp"})
      write_file_atomic(folder_ / name, shared_text(str(golden, "full_fsdp2_sharded/pytorch_model_fsdp_0/", name)));
  }
  std::string read_all() const {
    return error_of([&] {
      TorchCheckpoint checkpoint = TorchCheckpoint::open(folder_.path());
      contents_of(checkpoint, 1);
    });
  }
  void replace(const std::string& name, const std::string& from, const std::string& to) const {
    std::string text = read_file(folder_ / name);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    write_file_atomic(folder_ / name, text);
  }
  void overwrite(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;  // no fsync: there are thousands
  }
  TestFolder folder_;
};

void expect_says(const std::string& error, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(error.find(part), std::string::npos) << "\"" << part << "\" is not in:\n" << error;
}

TEST_F(DamagedCheckpoint, WholeOneIsRead) { EXPECT_EQ(read_all(), ""); }

TEST_F(DamagedCheckpoint, MissingFile) {
  remove_all(folder_ / "__1_0.distcp");
  expect_says(read_all(), {"__1_0.distcp", "No such file"});
}

TEST_F(DamagedCheckpoint, FileThatIsCutOff) {
  const std::string text = read_file(folder_ / "__1_0.distcp");
  write_file_atomic(folder_ / "__1_0.distcp", text.substr(0, text.size() - 1));
  expect_says(read_all(), {"__1_0.distcp: model.lm_head.weight", "copy the whole checkpoint folder again"});
}

TEST_F(DamagedCheckpoint, AChangedValueIsFoundByItsCheckSum) {
  std::string text = read_file(folder_ / "__0_0.distcp");
  text[1500] ^= 1;  // inside data/0 of the first chunk
  write_file_atomic(folder_ / "__0_0.distcp", text);
  expect_says(read_all(), {"__0_0.distcp: model.model.embed_tokens.weight", "CRC-32"});
}

TEST_F(DamagedCheckpoint, FilesOfOtherFolders) {
  replace(".metadata", "__0_0.distcp", "../a.distcp.");
  expect_says(read_all(), {".metadata", "../a.distcp", "the checkpoint's own folder"});
}

TEST_F(DamagedCheckpoint, ChunksThatDoNotCoverTheTensor) {
  replace(".metadata", "K!K \x86", "K K \x86");  // 32 instead of 33 rows
  expect_says(read_all(), {".metadata", "model.model.embed_tokens.weight: its chunks have 2048 elements", "2080, as [65, 32] has"});
}

TEST_F(DamagedCheckpoint, OtherNamesAreRefused) {
  replace(".metadata", "PosixPath", "WindowsPa");
  expect_says(read_all(), {".metadata", "pathlib.WindowsPa", "nothing is ever run"});
}

// Any change of a byte gives the tensors, other tensors or an Error, nothing else.
TEST_F(DamagedCheckpoint, RandomBytes) {
  const std::string metadata = read_file(folder_ / ".metadata"), chunks = read_file(folder_ / "__0_0.distcp");
  int refused = 0;
  for (uint32_t i = 0; i < 1000; ++i) {
    const bool first = i < 500;
    const Philox4 random = philox({i, 0, 0, 0}, 7);
    std::string text = first ? metadata : chunks;
    text[random[0] % text.size()] = char(random[1]);
    if (random[2] % 4 == 0) text.resize(random[3] % text.size());
    overwrite(first ? ".metadata" : "__0_0.distcp", text);
    if (i == 499) overwrite(".metadata", metadata);
    refused += !read_all().empty();
  }
  EXPECT_GT(refused, 300);
}

std::string pickle_error(const std::string& program) {
  return error_of(
      [&] { const Pickle p(std::as_bytes(std::span(program)), "file", std::vector<std::string_view>{"collections.OrderedDict"}); });
}

TEST(Pickle, NothingIsRun) {
  expect_says(pickle_error("\x80\x02"
                           "cos\nsystem\n"
                           "X\x02\0\0\0lsq\0\x85R."),
              {"file: names os.system", "nothing is ever run"});
  expect_says(pickle_error(std::string("\x80\x02(ios\nsystem\n", 15)), {"opcode 105"});  // INST
}

TEST(Pickle, BrokenPrograms) {
  expect_says(pickle_error(std::string("\x80\x02", 2)), {"cut off"});
  expect_says(pickle_error("\x80\x02."), {"before its value is complete"});
  expect_says(pickle_error("\x80\x02"
                           "a."),
              {"that is not there"});
  expect_says(pickle_error("\x80\x02(K\x01R."), {"that is not there"});
  expect_says(pickle_error("\x80\x02}K\x01"
                           "a."),
              {"another kind"});
  expect_says(pickle_error("\x80\x02h\x05."), {"was not kept"});
  expect_says(pickle_error("\x80\x02" + std::string(100, '(')), {"deeper than 64"});
  expect_says(pickle_error("\x80\x02X\x01" + std::string(3, '\0') + "\xff."), {"not UTF-8"});
  expect_says(pickle_error("\x80\x06N."), {"protocol 6"});
}

TEST(Pickle, Numbers) {
  const auto integer = [](const std::string& program) {
    const std::string whole = "\x80\x02" + program + ".";
    return Pickle(std::as_bytes(std::span(whole)), "file", {}).root().integer;
  };
  EXPECT_EQ(integer("K\xff"), 255);
  EXPECT_EQ(integer("J\xff\xff\xff\xff"), -1);
  EXPECT_EQ(integer(std::string("\x8a\x05\0\0\0\0\x02", 7)), int64_t(1) << 33) << "places beyond 2 GiB";
  EXPECT_EQ(integer("\x8a\x01\xff"), -1);
}

TEST(StoredZip, CrcOfTheStandardText) {
  const std::string digits = "123456789";
  EXPECT_EQ(crc32(0, std::as_bytes(std::span(digits))), 0xcbf43926u);
  EXPECT_EQ(crc32(crc32(0, std::as_bytes(std::span(digits).first(4))), std::as_bytes(std::span(digits).subspan(4))), 0xcbf43926u);
}

}  // namespace
}  // namespace tessera
