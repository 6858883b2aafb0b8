#include "train/checkpoint_write.h"

#include <algorithm>
#include <span>

#include "core/text.h"

namespace tessera {
namespace {

// The part of [0, end) that rank r of n writes, in blocks of 64.
Range even_share(size_t end, int r, int n) {
  const size_t blocks = end / 64;
  return {blocks * size_t(r) / size_t(n) * 64, r + 1 == n ? end : blocks * size_t(r + 1) / size_t(n) * 64};
}

// Every rank does its part; when one cannot, all throw.
void together(Comm& comm, const std::function<void()>& part) {
  std::string error;
  try {
    part();
  } catch (const RankLost&) {
    throw;
  } catch (const Error& e) {
    error = e.what();
  }
  for (const std::string& text : gather_strings(comm, error))
    if (!text.empty()) throw SaveError(text);
}

std::string shard_name(int rank, int ranks) {
  const auto five = [](int n) { return std::string(n < 10000 ? 5 - std::to_string(n).size() : 0, '0') + std::to_string(n); };
  return str("shard-", five(rank + 1), "-of-", five(ranks), ".safetensors");
}

FileFacts facts_of(const std::string& path) { return {MappedFile(path).size(), sha256_file(path)}; }

void write_values(const OutputSource& from, const std::string& folder) {
  if (from.model.request.train_base) {
    write_model(from, folder, Dtype::f32);
  } else {
    write_adapter(from, folder, false);
  }
}

void write_optimizer(const OutputSource& from, const StateOf& state, const std::string& folder) {
  std::vector<TensorStream> streams;
  for (size_t s = 1; s < state_names.size(); ++s)
    streams.push_back({str(state_names[s], ":"), [&state, s](int unit) { return state(s, unit); }});
  write_tensors(from, folder + "/optimizer.safetensors", streams, Dtype::f32, {});
}

// What this rank's shares hold of each tensor.
void write_shard(const Model& model, const StateOf& state, const std::string& path) {
  struct Piece {
    Share share;
    Range own;
  };
  std::map<std::string, Piece> pieces;
  std::vector<TensorToWrite> tensors;
  for (size_t s = 0; s < state_names.size(); ++s)
    for (int unit = 0; unit <= model.root_unit(); ++unit) {
      const Share mine = state(s, unit);
      for (const PartPlace& p : model.units[size_t(unit)].parts) {
        const Range own = p.trains ? intersect(p.element_range(), mine.range) : Range{};
        if (!own.size()) continue;
        tensors.push_back({str(state_names[s], ":", p.name), Dtype::f32, {int64_t(own.size())}, nullptr});
        pieces[tensors.back().name] = {mine, own};
      }
    }
  std::vector<float> storage;
  write_safetensors(path, tensors, {}, [&](const TensorToWrite& t) {
    const Piece& piece = pieces.at(t.name);
    return std::as_bytes(std::span(read_share(piece.share, piece.own, storage), piece.own.size()));
  });
}

// Which rank's file holds which elements, from every rank's ranges. Collective.
std::map<std::string, CheckpointTensor> place_pieces(const Model& model, Comm& comm, const StateOf& state) {
  std::map<std::string, CheckpointTensor> out;
  for (int unit = 0; unit <= model.root_unit(); ++unit) {
    const Range mine = state(0, unit).range;
    const auto begins = gather_values(comm, int64_t(mine.begin)), ends = gather_values(comm, int64_t(mine.end));
    for (const PartPlace& p : model.units[size_t(unit)].parts) {
      if (!p.trains) continue;
      CheckpointTensor& tensor = out[p.name];
      tensor.shape = {p.shape.dim.begin(), p.shape.dim.begin() + p.shape.rank};
      for (size_t r = 0; r < begins.size(); ++r) {
        const Range own = intersect(p.element_range(), {size_t(begins[r]), size_t(ends[r])});
        if (own.size())
          tensor.pieces.push_back({shard_name(int(r), comm.size()), int64_t(own.begin - p.begin), int64_t(own.end - p.begin)});
      }
    }
  }
  return out;
}

void write_small_files(const LoadedModel& m, const std::string& folder) {
  if (m.request.train_base) {
    write_config(m.request.folder, folder, Dtype::f32);
  } else {
    write_adapter_config(m, folder);
  }
}

// The newest `keep` stay, and the best one: when that is none of them, it takes the place of the oldest but never of the newest.
void delete_old(const SaveOptions& o, int64_t best) {
  std::vector<FoundCheckpoint> all = valid_checkpoints(o.output);
  if (o.keep <= 0 || all.size() <= size_t(o.keep)) return;
  std::stable_partition(all.begin(), all.end() - 1, [&](const FoundCheckpoint& c) { return c.step != best; });
  const bool two = all.size() > 1 && all[all.size() - 2].step == best;
  const size_t stay = std::max<size_t>(size_t(o.keep), two ? 2 : 1);
  for (size_t i = 0; i + stay < all.size(); ++i) remove_all(all[i].folder);
}

// One writing of a checkpoint.
class Writing {
 public:
  Writing(const LoadedModel& m, Comm& c, const StateOf& s, CheckpointManifest facts, const SaveOptions& o)
      : model_(m), comm_(c), state_(s), manifest_(std::move(facts)), options_(o), first_(c.rank() == 0) {
    folder_ = str(o.output, "/checkpoint-", manifest_.step);
    temporary_ = folder_ + ".tmp";
  }

  std::string run() {
    try {
      write_files();
      hash_files();
      finish();
    } catch (const SaveError&) {
      clean();
      throw;
    }
    return folder_;
  }

 private:
  void write_files() {
    together(comm_, [&] {
      if (!first_) return;
      remove_all(temporary_);
      make_folder(temporary_);
    });
    const OutputSource from{model_, comm_, [&](int unit) { return state_(0, unit); }};
    if (manifest_.sharded) {
      manifest_.tensors = place_pieces(model_.model, comm_, state_);
      together(comm_, [&] {
        write_shard(model_.model, state_, shard());
        if (first_) write_small_files(model_, temporary_);
      });
    } else {
      together(comm_, [&] { write_values(from, temporary_); });
      together(comm_, [&] { write_optimizer(from, state_, temporary_); });
    }
  }

  // Shards are hashed by those who wrote them.
  void hash_files() {
    FileFacts mine;
    together(comm_, [&] {
      if (manifest_.sharded) mine = facts_of(shard());
      if (!first_) return;
      for (const std::string& name : list_folder(temporary_))
        if (!starts_with(name, "shard-")) manifest_.files[name] = facts_of(temporary_ + "/" + name);
    });
    if (!manifest_.sharded) return;
    const auto sizes = gather_values(comm_, int64_t(mine.bytes));
    const auto hashes = gather_strings(comm_, mine.sha256);
    for (size_t r = 0; r < hashes.size(); ++r) manifest_.files[shard_name(int(r), comm_.size())] = {uint64_t(sizes[r]), hashes[r]};
  }

  void finish() {
    together(comm_, [&] {
      if (!first_) return;
      if (!options_.log.empty() && file_exists(options_.log)) sync_file(options_.log);
      write_file_atomic(temporary_ + "/" + checkpoint_manifest_name, checkpoint_manifest_text(manifest_));
      rename_folder(temporary_, folder_);
    });
    together(comm_, [&] {
      if (!first_) return;
      read_checkpoint_manifest(folder_);  // what was written has been read back and hashed
      delete_old(options_, manifest_.best_step);
    });
  }

  void clean() {
    if (!first_) return;
    try {
      remove_all(temporary_);
    } catch (const Error&) {  // the disk is at fault already; the next run removes it
    }
  }

  std::string shard() const { return temporary_ + "/" + shard_name(comm_.rank(), comm_.size()); }

  const LoadedModel& model_;
  Comm& comm_;
  const StateOf& state_;
  CheckpointManifest manifest_;
  const SaveOptions& options_;
  const bool first_;
  std::string folder_, temporary_;
};

}  // namespace

StateOf live_state(LoadedModel& m, const Optimizer& optimizer) {
  const bool everywhere = !find_strategy(m.request.strategy).shard_over_world;
  return [&m, &optimizer, everywhere](size_t state, int unit) {
    const Range owned = m.sharded.trainable_range(unit);
    const Tensor array = state == 0 ? m.sharded.values(unit) : state == 1 ? optimizer.exp_avg(unit) : optimizer.exp_avg_sq(unit);
    Share share = share_of(array, owned);
    if (everywhere) share.range = even_share(owned.end, m.comm.rank(), m.comm.size()), share.values += share.range.begin;
    return share;
  };
}

Snapshot::Snapshot(const StateOf& live, int units, Backend& backend) : live_(live), backend_(backend) {
  for (int unit = 0; unit < units; ++unit) {
    ranges_.push_back(live_(0, unit).range);
    begins_.push_back(total_);
    total_ += ranges_.back().size();
  }
  if (total_) memory_ = backend.allocate_pinned(state_names.size() * total_ * sizeof(float), "checkpoint snapshot");
}

Share Snapshot::share(size_t state, int unit) const {
  return {ranges_[size_t(unit)], reinterpret_cast<const float*>(memory_.data()) + state * total_ + begins_[size_t(unit)]};
}

void Snapshot::commit() {
  constexpr size_t page = 4096;
  for (size_t at = 0; at < memory_.bytes(); at += page) memory_.data()[at] = std::byte(0);
}

void Snapshot::take() {
  for (size_t state = 0; state < state_names.size(); ++state)
    for (int unit = 0; unit < int(ranges_.size()); ++unit)
      if (const Share to = share(state, unit); to.range.size())
        backend_.copy(const_cast<float*>(to.values), live_(state, unit).values, to.range.size() * sizeof(float));
}

std::string write_checkpoint(const LoadedModel& m, Comm& comm, const StateOf& state, CheckpointManifest facts, const SaveOptions& o) {
  return Writing(m, comm, state, std::move(facts), o).run();
}

}  // namespace tessera
