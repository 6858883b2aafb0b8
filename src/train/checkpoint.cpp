#include "train/checkpoint.h"

#include <algorithm>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "models/peft.h"

namespace tessera {
namespace {

void check_whole(const FoundCheckpoint& c) {
  check_checkpoint_files(read_checkpoint_manifest(c.folder), c.folder);  // says what is wrong, also when it is the manifest
}

[[noreturn]] void none_found(const std::string& asked, const std::string& output) {
  fail(str("--resume_from_checkpoint ", asked), str("found no complete checkpoint in ", output),
       "folders checkpoint-STEP with checkpoint.json",
       "start without --resume_from_checkpoint or with auto, or give the right --output_dir");
}

std::string newest(const std::string& asked, const std::string& output) {
  const auto all = list_checkpoints(output);
  if (all.empty()) none_found(asked, output);
  try {
    check_whole(all.back());
  } catch (const Error& e) {
    fail(str("--resume_from_checkpoint ", asked, ": ", all.back().folder), str("the newest checkpoint is damaged\n", e.what()),
         "a whole checkpoint", "--resume_from_checkpoint auto goes on from the one before, or give a folder");
  }
  return all.back().folder;
}

std::string newest_whole(const std::string& output) {
  const auto all = list_checkpoints(output);
  for (auto c = all.rbegin(); c != all.rend(); ++c) {
    try {
      check_whole(*c);
      return c->folder;
    } catch (const Error& e) {
      warn(str(c->folder, " is damaged and will not be used\n", e.what()));
      if (c + 1 != all.rend()) warn(str("--resume_from_checkpoint auto: going back to ", (c + 1)->folder));
    }
  }
  if (!all.empty())
    fail(str("--resume_from_checkpoint auto: ", output), str("all of its ", all.size(), " checkpoints are damaged"), "a whole checkpoint",
         "remove them to start from the beginning");
  say(str("--resume_from_checkpoint auto: no checkpoint in ", output, ", the run starts from the beginning"));
  return "";
}

std::string find_and_check(const std::string& asked, const std::string& output) {
  const std::string word = lower(asked);
  if (word.empty() || word == "false") return "";
  recover_folder(output);
  if (word == "auto") return newest_whole(output);
  if (word == "true" || word == "latest") return newest(asked, output);
  if (!file_exists(str(asked, "/", checkpoint_manifest_name)))
    fail(str("--resume_from_checkpoint ", asked), str("has no ", checkpoint_manifest_name),
         "a folder checkpoint-STEP that a run has completed", "give such a folder, or true for the newest of --output_dir");
  check_whole({asked, -1, ""});
  return asked;
}

void check_tensors(const Model& model, const CheckpointReader& reader) {
  size_t trained = 0;
  for (const UnitLayout& unit : model.units)
    for (const PartPlace& p : unit.parts) {
      if (!p.trains) continue;
      ++trained;
      const auto found = reader.tensors().find(p.name);
      const std::vector<int64_t> shape(p.shape.dim.begin(), p.shape.dim.begin() + p.shape.rank);
      if (found == reader.tensors().end() || found->second != shape)
        fail(reader.folder(), str("holds ", found == reader.tensors().end() ? "no " : shape_text(found->second) + " for ", p.name),
             shape_text(shape), "resume with the model and the settings of that run");
    }
  if (trained != reader.tensors().size())
    fail(reader.folder(), str("holds ", reader.tensors().size(), " trained tensors"), str(trained, ", as this run trains"),
         "resume with the model and the settings of that run");
}

}  // namespace

std::optional<Resumed> find_checkpoint(const std::string& asked, const std::string& output, Comm& comm) {
  const std::string folder = gather_strings(comm, comm.rank() == 0 ? find_and_check(asked, output) : "")[0];
  if (folder.empty()) return std::nullopt;
  return Resumed{folder, read_checkpoint_manifest(folder)};
}

int64_t accumulation_steps(const Resumed& r, int64_t asked, int ranks) {
  const int64_t all = r.manifest.micro_batches;
  if (ranks == r.manifest.ranks || asked * ranks == all) return asked;
  if (all % ranks == 0) {
    say(str("resumed  on ", ranks, " ranks instead of ", r.manifest.ranks, ": --gradient_accumulation_steps ", all / ranks, " keeps the ",
            all, " micro-batches of a step"));
    return all / ranks;
  }
  std::vector<std::string> possible;
  for (int64_t n = 1; n <= all; ++n)
    if (all % n == 0) possible.push_back(str(n));
  fail(str("--resume_from_checkpoint ", r.folder), str(ranks, " ranks"),
       str(join(possible, ", "), " ranks: they share the ", all, " micro-batches of a step evenly"), "start that many ranks");
}

void clear_later_checkpoints(const std::string& output, const std::optional<Resumed>& resumed) {
  for (const std::string& name : list_folder(output))
    if (starts_with(name, "checkpoint-") && ends_with(name, ".tmp")) remove_all(output + "/" + name);
  for (const FoundCheckpoint& c : list_checkpoints(output)) {
    if (!resumed)
      fail(str("--output_dir ", output), str("holds ", file_name(c.folder), " of an earlier run"),
           "a folder without checkpoints, or a run that is resumed",
           "add --resume_from_checkpoint true, choose another folder, or remove the checkpoints");
    if (c.step > resumed->manifest.step) remove_all(c.folder);
  }
}

void start_from_checkpoint(ModelRequest& r, const std::string& folder) {
  r.values = !r.train_base;  // else all of them come from the checkpoint
  if (r.train_base) return;
  PeftConfig peft = read_peft_config(folder);
  peft.dropout = r.peft.dropout;
  peft.base_model_name_or_path = r.peft.base_model_name_or_path;
  r.peft = peft;
  r.adapter.clear();
  r.new_adapter = true;
}

namespace {

// What `mine` owns of a tensor, into its place in an array of owned values.
void read_owned(const CheckpointReader& reader, const char* state, const PartPlace& p, Range mine, Tensor to, std::vector<float>& storage) {
  const Range own = intersect(p.element_range(), mine);
  if (!own.size()) return;
  const auto begin = int64_t(own.begin - p.begin), count = int64_t(own.size());
  float* const place = to.as<float>() + (own.begin - mine.begin);
  if (!to.home->on_device(to.data)) return reader.read(state, p.name, begin, count, place);
  storage.resize(own.size());
  reader.read(state, p.name, begin, count, storage.data());
  to.home->copy(place, storage.data(), own.size() * sizeof(float));
}

}  // namespace

void load_state(LoadedModel& m, Optimizer* optimizer, const std::string& folder) {
  const CheckpointReader reader = CheckpointReader::open(folder);
  check_tensors(m.model, reader);
  std::vector<float> storage;
  for (int unit = 0; unit < m.sharded.units(); ++unit) {
    const Range mine = m.sharded.trainable_range(unit);
    for (const PartPlace& p : m.model.units[size_t(unit)].parts) {
      if (!p.trains) continue;
      read_owned(reader, "values", p, mine, m.sharded.values(unit), storage);
      if (!optimizer) continue;
      read_owned(reader, "exp_avg", p, mine, optimizer->exp_avg(unit), storage);
      read_owned(reader, "exp_avg_sq", p, mine, optimizer->exp_avg_sq(unit), storage);
    }
    reader.forget_pages();
  }
  m.sharded.loaded();
}

}  // namespace tessera
