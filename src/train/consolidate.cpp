#include "train/consolidate.h"

#include <algorithm>
#include <memory>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "io/file.h"
#include "train/checkpoint_files.h"
#include "train/consolidate_torch.h"
#include "train/output.h"
#include "train/tensor_source.h"

namespace tessera {
namespace {

constexpr const char* adapter_config = "adapter_config.json";
constexpr int64_t stretch = int64_t(1) << 22;  // elements of a mapped file that are in memory at once

// Removes the folder unless it got its final name.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& path) : path_(path) {
    remove_all(path_);
    make_folder(path_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    try {
      if (!path_.empty()) remove_all(path_);
    } catch (const Error&) {  // what went wrong first is what the user should read
    }
  }
  const std::string& path() const { return path_; }
  void rename(const std::string& to) {
    rename_folder(path_, to);
    path_.clear();
  }

 private:
  std::string path_;
};

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void check_target(const std::string& path) {
  const bool file = file_exists(path);
  if (file || !list_folder(path).empty())
    fail(path, file ? "is a file" : "holds files", "a folder that is not there yet, or is empty",
         "choose another folder, or empty this one");
}

// The newest checkpoint of a run. A damaged one is not passed over in silence.
std::string newest_checkpoint(const std::string& run) {
  const auto found = list_checkpoints(run);
  if (found.empty())
    fail(run, "holds no checkpoint",
         "a run's folder with checkpoint-STEP, such a folder, or a checkpoint of PyTorch (.metadata, or a .bin file)",
         "check the path; a run makes checkpoints with --save_steps");
  if (found.back().fault.empty()) return found.back().folder;
  std::string remedy = "no older one is whole";
  for (const auto& older : found)
    if (older.fault.empty()) remedy = "name an older one: " + older.folder;
  fail(found.back().folder, "the newest checkpoint is damaged: " + found.back().fault, "a whole checkpoint", remedy);
}

std::vector<TensorSource> sources_of(const CheckpointReader& reader, const std::string& prefix) {
  std::vector<TensorSource> out;
  for (const auto& [name, shape] : reader.tensors())
    out.push_back({prefix + name, Dtype::f32, shape, [&reader, name](std::span<std::byte> to) {
                     auto* out = reinterpret_cast<float*>(to.data());
                     const auto count = int64_t(to.size() / sizeof(float));
                     for (int64_t at = 0; at < count; at += stretch) {
                       reader.read("values", name, at, std::min(stretch, count - at), out + at);
                       reader.forget_pages();
                     }
                   }});
  return out;
}

Consolidated consolidate_ours(const ConsolidateRequest& r, const std::string& checkpoint, const std::string& folder) {
  const CheckpointReader reader = CheckpointReader::open(checkpoint);
  const CheckpointManifest& manifest = reader.manifest();
  check_checkpoint_files(manifest, checkpoint);
  const bool adapter = manifest.files.contains(adapter_config);
  Consolidated out{checkpoint, adapter ? "adapter" : "model", "", int64_t(reader.tensors().size()), 0};
  if (adapter) {
    out.bytes = write_sources(folder + "/adapter_model.safetensors", sources_of(reader, "base_model.model."), dtype_asked(r.dtype),
                              {{"format", "pt"}});
    copy_file_atomic(str(checkpoint, "/", adapter_config), str(folder, "/", adapter_config));
    return out;
  }
  const std::string base = r.model.empty() ? manifest.model : r.model;
  const auto precision = manifest.configuration.find("precision");
  const Dtype dtype =
      dtype_asked(!r.dtype.empty() || precision == manifest.configuration.end() ? r.dtype : precision->second).value_or(Dtype::f32);
  out.bytes = write_sources(folder + "/model.safetensors", sources_of(reader, ""), dtype, {{"format", "pt"}});
  if (!manifest.files.contains("config.json") && !file_exists(base + "/config.json"))
    fail(base + "/config.json", "no such file", "the configuration of the model that was trained", "give its folder with --model FOLDER");
  write_config(manifest.files.contains("config.json") ? checkpoint : base, folder, dtype);
  if (folder_exists(base))
    copy_tokenizer(base, folder);
  else
    out.note = str("the tokenizer's files are missing: ", base, " is not there; give the folder with --model");
  return out;
}

}  // namespace

Consolidated consolidate(const ConsolidateRequest& r) {
  const std::string from = without_slashes(r.from), to = without_slashes(r.to);
  if (!folder_exists(from) && !file_exists(from)) fail(from, "no such file or folder", "a run's folder or a checkpoint", "check the path");
  check_target(to);
  const bool ours = file_exists(str(from, "/", checkpoint_manifest_name));
  const std::string torch = ours ? "" : find_torch_checkpoint(from);
  const std::string checkpoint = ours || !torch.empty() ? from : newest_checkpoint(from);
  TemporaryFolder folder(to + ".tmp");
  const Consolidated out = torch.empty() ? consolidate_ours(r, checkpoint, folder.path()) : consolidate_torch(r, torch, folder.path());
  folder.rename(to);
  return out;
}

}  // namespace tessera
