#include "train/checkpoint_files.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr const char* optimizer_file = "optimizer.safetensors";
constexpr const char* peft_prefix = "base_model.model.";
constexpr const char* older = "resume from an older checkpoint of this run";

// -1 unless the name is PREFIX and digits.
int64_t step_of(const std::string& name) {
  const std::string prefix = "checkpoint-", digits = starts_with(name, prefix) ? name.substr(prefix.size()) : "";
  const bool number = !digits.empty() && digits.size() < 18 && digits.find_first_not_of("0123456789") == std::string::npos;
  return number ? std::stoll(digits) : -1;
}

bool unfinished(const std::string& name) {
  return ends_with(name, ".tmp") || name.find(".old-") != std::string::npos || name.find(".gone-") != std::string::npos;
}

void check_sizes(const CheckpointManifest& m, const std::string& folder) {
  for (const auto& [name, facts] : m.files) {
    const std::string path = folder + "/" + name;
    if (!file_exists(path)) fail(path, "is missing", str("the file that ", checkpoint_manifest_name, " lists"), older);
    if (const size_t bytes = MappedFile(path).size(); bytes != facts.bytes)
      fail(path, str("is damaged: it has ", bytes, " bytes"), str(facts.bytes, " bytes, as ", checkpoint_manifest_name, " says"), older);
  }
}

std::string error_in(const std::string& folder) {
  try {
    read_checkpoint_manifest(folder);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

std::string_view state_dict_kind(bool sharded) { return sharded ? "SHARDED_STATE_DICT" : "FULL_STATE_DICT"; }

int64_t CheckpointTensor::size() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

CheckpointManifest read_checkpoint_manifest(const std::string& folder) {
  const std::string path = str(folder, "/", checkpoint_manifest_name);
  if (!file_exists(path))
    fail(folder, str("has no ", checkpoint_manifest_name), "a folder checkpoint-STEP that a run has completed", "give such a folder");
  CheckpointManifest m = parse_checkpoint_manifest(read_file(path), path);
  check_sizes(m, folder);
  return m;
}

void check_checkpoint_files(const CheckpointManifest& m, const std::string& folder) {
  check_sizes(m, folder);
  for (const auto& [name, facts] : m.files)
    if (sha256_file(folder + "/" + name) != facts.sha256)
      fail(folder + "/" + name, "is damaged: its SHA-256 is not the one that was written", facts.sha256, older);
}

std::vector<FoundCheckpoint> list_checkpoints(const std::string& output) {
  std::vector<FoundCheckpoint> out;
  for (const std::string& name : list_folder(output)) {
    const std::string folder = output + "/" + name;
    if (!starts_with(name, "checkpoint-") || unfinished(name) || !file_exists(folder + "/" + checkpoint_manifest_name)) continue;
    FoundCheckpoint found{folder, step_of(name), error_in(folder)};
    if (found.fault.empty()) found.step = read_checkpoint_manifest(folder).step;
    out.push_back(found);
  }
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return out;
}

std::vector<FoundCheckpoint> valid_checkpoints(const std::string& output) {
  std::vector<FoundCheckpoint> out = list_checkpoints(output);
  std::erase_if(out, [](const FoundCheckpoint& c) { return !c.fault.empty(); });
  return out;
}

const TensorFiles& CheckpointReader::add_file(const std::string& name) {
  if (const auto found = files_.find(name); found != files_.end()) return found->second;
  if (!manifest_.files.contains(name))
    fail(folder_, str(name, " is not in its ", checkpoint_manifest_name), "a complete checkpoint", older);
  return files_.emplace(name, TensorFiles::open(folder_ + "/" + name)).first->second;
}

// The values' file says which tensors there are; the optimizer's must have the same.
void CheckpointReader::open_full() {
  const bool adapter = manifest_.files.contains("adapter_model.safetensors");
  const TensorFiles& values = add_file(adapter ? "adapter_model.safetensors" : "model.safetensors");
  const TensorFiles& states = add_file(optimizer_file);
  const std::string prefix = adapter ? peft_prefix : "";
  const auto add = [&](const std::string& key, const StoredTensor& t, const std::vector<int64_t>& shape) {
    if (t.dtype_name != "F32" || t.shape != shape)
      fail(t.where(), str(t.dtype_name, " ", t.shape_text()), str("F32 ", shape_text(shape)), older);
    parts_[key] = {{0, t.size(), &t}};
  };
  for (const auto& [stored, tensor] : values.all()) {
    if (!starts_with(stored, prefix)) fail(tensor.where(), str("begins not with ", prefix), "names as PEFT writes them", older);
    const std::string name = stored.substr(prefix.size());
    shapes_[name] = tensor.shape;
    add("values:" + name, tensor, tensor.shape);
    for (const char* state : {"exp_avg:", "exp_avg_sq:"}) add(state + name, states.get(state + name), tensor.shape);
  }
}

void CheckpointReader::open_sharded() {
  for (const auto& [name, tensor] : manifest_.tensors) {
    shapes_[name] = tensor.shape;
    for (const char* state : {"values:", "exp_avg:", "exp_avg_sq:"})
      for (const CheckpointPiece& piece : tensor.pieces) {
        const StoredTensor& t = add_file(piece.file).get(state + name);
        const std::vector<int64_t> shape{piece.end - piece.begin};
        if (t.dtype_name != "F32" || t.shape != shape)
          fail(t.where(), str(t.dtype_name, " ", t.shape_text()), str("F32 ", shape_text(shape), ", as the manifest says"), older);
        parts_[state + name].push_back({piece.begin, piece.end, &t});
      }
  }
}

CheckpointReader CheckpointReader::open(const std::string& folder) {
  CheckpointReader out;
  out.folder_ = folder;
  out.manifest_ = read_checkpoint_manifest(folder);
  out.manifest_.sharded ? out.open_sharded() : out.open_full();
  return out;
}

void CheckpointReader::read(std::string_view state, const std::string& name, int64_t begin, int64_t count, float* out) const {
  const auto found = parts_.find(str(state, ":", name));
  if (found == parts_.end())
    fail(folder_, str("holds no ", state, " of ", name), "the tensors that train in this run", "resume with the settings of that run");
  assert(begin >= 0 && count >= 0 && begin + count <= found->second.back().end);
  for (const Part& part : found->second) {
    const int64_t from = std::max(begin, part.begin), to = std::min(begin + count, part.end);
    if (from < to)
      std::memcpy(out + (from - begin), part.stored->data + size_t(from - part.begin) * sizeof(float), size_t(to - from) * sizeof(float));
  }
}

void CheckpointReader::forget_pages() const {
  for (const auto& [name, files] : files_) files.forget_pages();
}

}  // namespace tessera
