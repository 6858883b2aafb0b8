#include "comm/nccl.h"

#include <algorithm>
#include <cassert>
#include <optional>

#include "comm/blocking_call.h"
#include "comm/nccl_watch.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr size_t halves = 2;  // rounds in flight

bool equal_and_adjoining(std::span<const Range> parts) {
  for (size_t r = 0; r < parts.size(); ++r)
    if (parts[r].begin != parts[0].begin + r * parts[0].size() || parts[r].size() != parts[0].size()) return false;
  return true;
}

// Piece `step` of a part, the last one shorter; empty past the end.
Range cut(Range part, size_t step, size_t piece) {
  const size_t begin = std::min(part.begin + step * piece, part.end);
  return {begin, std::min(begin + piece, part.end)};
}

size_t longest_of(std::span<const Range> parts) {
  size_t longest = 0;
  for (const Range& p : parts) longest = std::max(longest, p.size());
  return longest;
}

size_t bytes_for_sums(int ranks, size_t longest, size_t round_floats) {
  const size_t piece = std::min(longest, round_floats);
  return piece * size_t(ranks - 1) * sizeof(float) * (longest > piece ? halves : 1);
}

class NcclComm final : public Comm {
 public:
  NcclComm(Comm& host, Backend& backend, const NcclLibrary& library) : host_(host), backend_(backend), library_(library) { connect(); }
  NcclComm(std::unique_ptr<Comm> owned, Backend& backend, const NcclLibrary& library)
      : owned_(std::move(owned)), host_(*owned_), backend_(backend), library_(library) {
    connect();
  }
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  int node() const override { return host_.node(); }
  int nodes() const override { return host_.nodes(); }
  std::string describe() const override;

  void all_gather(std::byte* buffer, std::span<const Range> parts) override;
  void all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte* mine) override;
  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override;
  void broadcast(std::byte* buffer, size_t bytes, int root) override;
  void barrier() override { host_.barrier(); }
  std::unique_ptr<Comm> split(int color, int key) override {
    return std::make_unique<NcclComm>(host_.split(color, key), backend_, library_);
  }
  Buffer shared_window(size_t bytes) override { return host_.shared_window(bytes); }
  void set_deadline(double seconds) override { host_.set_deadline(seconds), watch_->set_deadline(seconds); }
  double deadline() const override { return host_.deadline(); }
  void abort(int code) override { host_.abort(code); }
  void interrupt() override { host_.interrupt(), watch_->interrupt(); }

 private:
  using Group = NcclLibrary::Group;
  void connect();
  void meet_all_peers();
  void check(int result, const char* call, Group group) const;
  template <class Give>
  void exchange(Give give);
  const std::byte* brought_here(std::byte* place, const std::byte* mine, size_t bytes);
  void exchange_pieces(float* received, const float* x, std::span<const Range> parts, size_t step, size_t piece);
  void add_pieces(float* sum, const float* x, const float* received, Range mine, size_t piece);
  Tensor floats(const float* data, size_t n) const {
    return {const_cast<float*>(data), Dtype::f32, {int64_t(n)}, const_cast<Backend*>(&backend_)};
  }

  std::unique_ptr<Comm> owned_;
  Comm& host_;
  Backend& backend_;
  const NcclLibrary& library_;
  const NcclLibrary::Stream stream_ = backend_.native(Lane::exchange);
  std::optional<NcclWatch> watch_;
  Buffer received_;  // pieces of other ranks that wait to be added
};

std::string NcclComm::describe() const {
  int version = 0;
  library_.get_version(&version);
  return str(host_.describe(), ", NCCL ", nccl_version_text(version));
}

void NcclComm::check(int result, const char* call, Group group) const {
  if (result != NcclLibrary::success) throw RankLost(nccl_error_text(library_, group, call, result, rank()));
}

// Errors here are those of the machine or of how the run was started: nothing was lost yet.
void NcclComm::connect() {
  NcclLibrary::Id id{};
  int made = rank() == 0 ? library_.make_id(&id) : int(NcclLibrary::success);
  host_.broadcast(reinterpret_cast<std::byte*>(&made), sizeof made, 0);
  if (made != NcclLibrary::success) throw Error(nccl_error_text(library_, nullptr, "ncclGetUniqueId on rank 0", made, rank()));
  host_.broadcast(reinterpret_cast<std::byte*>(&id), sizeof id, 0);
  Group group = nullptr;
  {
    const BlockingCall call("ncclCommInitRank", host_.deadline());
    const int result = library_.init_rank(&group, size(), id, rank());
    if (result != NcclLibrary::success) throw Error(nccl_error_text(library_, group, "ncclCommInitRank", result, rank()));
  }
  watch_.emplace(host_.split(0, rank()), library_, group, stream_);
  meet_all_peers();
}

// NCCL makes its connections and their buffers at the first exchange of each kind: now, so that a way between two GPUs that does not work
// is known before the model is loaded, and the memory is taken before a step.
void NcclComm::meet_all_peers() {
  constexpr size_t each = 64;  // floats
  const size_t ranks = size_t(size());
  const Buffer memory = backend_.reserve((ranks + 1) * each * sizeof(float), "first exchange of the GPUs");
  std::vector<Range> bytes, elements, uneven;
  for (size_t r = 0; r < ranks; ++r) {
    elements.push_back({r * each, (r + 1) * each});
    bytes.push_back({r * each * sizeof(float), (r + 1) * each * sizeof(float)});
    uneven.push_back({bytes[r].begin, bytes[r].end - (r == 0 ? sizeof(float) : 0)});
  }
  float* const all = reinterpret_cast<float*>(memory.data());
  all_gather(memory.data(), bytes);
  all_gather(memory.data(), uneven);
  reduce_scatter(all + ranks * each, all, elements);
  backend_.finish();
}

// give(group) runs when the exchange lane is behind the compute lane.
template <class Give>
void NcclComm::exchange(Give give) {
  backend_.wait(Lane::exchange, backend_.now(Lane::compute));
  watch_->exchange(give);
}

// NCCL reads this rank's part where it is on the device; from the host it is copied into its place first.
const std::byte* NcclComm::brought_here(std::byte* place, const std::byte* mine, size_t bytes) {
  if (bytes == 0) return place;
  if (backend_.on_device(mine)) return mine;
  backend_.wait(Lane::to_device, backend_.now(Lane::compute));
  backend_.wait(Lane::to_device, backend_.now(Lane::exchange));
  backend_.copy_beside(place, mine, bytes);
  backend_.wait(Lane::exchange, backend_.now(Lane::to_device));
  return place;
}

void NcclComm::all_gather(std::byte* buffer, std::span<const Range> parts) {
  if (!backend_.on_device(buffer)) return host_.all_gather(buffer, parts);
  all_gather_from(buffer, parts, buffer + parts[size_t(rank())].begin);
}

void NcclComm::all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte* mine) {
  assert(int(parts.size()) == size());
  if (!backend_.on_device(buffer)) return host_.all_gather_from(buffer, parts, mine);
  const Range own = parts[size_t(rank())];
  const std::byte* const from = brought_here(buffer + own.begin, mine, own.size());
  if (longest_of(parts) == 0) return;
  if (equal_and_adjoining(parts)) {
    return exchange([&](Group g) {
      check(library_.all_gather(from, buffer + parts[0].begin, own.size(), NcclLibrary::uint8, g, stream_), "ncclAllGather", g);
    });
  }
  exchange([&](Group g) {
    check(library_.group_start(), "ncclGroupStart", g);
    for (int r = 0; r < size(); ++r) {
      const Range p = parts[size_t(r)];
      std::byte* const to = buffer + p.begin;
      if (p.size()) check(library_.broadcast(r == rank() ? from : to, to, p.size(), NcclLibrary::uint8, r, g, stream_), "ncclBroadcast", g);
    }
    check(library_.group_end(), "ncclGroupEnd", g);
  });
}

// Piece `step` of every part goes to its owner; this rank's own pieces arrive from the others, in rank order at every `piece` floats.
void NcclComm::exchange_pieces(float* received, const float* x, std::span<const Range> parts, size_t step, size_t piece) {
  const Range mine = cut(parts[size_t(rank())], step, piece);
  exchange([&](Group g) {
    check(library_.group_start(), "ncclGroupStart", g);
    for (int d = 1; d < size(); ++d) {
      const int to = (rank() + d) % size(), from = (rank() + size() - d) % size();
      const Range theirs = cut(parts[size_t(to)], step, piece);
      if (theirs.size()) check(library_.send(x + theirs.begin, theirs.size(), NcclLibrary::float32, to, g, stream_), "ncclSend", g);
      if (mine.size())
        check(library_.receive(received + size_t(from - (from > rank())) * piece, mine.size(), NcclLibrary::float32, from, g, stream_),
              "ncclRecv", g);
    }
    check(library_.group_end(), "ncclGroupEnd", g);
  });
}

void NcclComm::add_pieces(float* sum, const float* x, const float* received, Range mine, size_t piece) {
  for (int r = 0; r < size() && mine.size(); ++r) {
    const float* const theirs = received + size_t(r - (r > rank())) * piece;
    backend_.accumulate(floats(sum, mine.size()), floats(r == rank() ? x + mine.begin : theirs, mine.size()));
  }
}

// In pieces, two in flight: one is added while the next one travels. A half of `received_` is filled again after its pieces were added,
// which the exchange lane knows because it waits for the compute lane.
void NcclComm::reduce_scatter(float* sum, const float* x, std::span<const Range> parts) {
  assert(int(parts.size()) == size());
  if (!backend_.on_device(x)) return host_.reduce_scatter(sum, x, parts);
  const size_t longest = longest_of(parts);
  if (longest == 0) return;
  const size_t piece = std::min(longest, library_.round_floats), steps = (longest + piece - 1) / piece;
  const size_t needed = bytes_for_sums(size(), longest, library_.round_floats);
  if (received_.bytes() < needed) {
    backend_.finish();
    received_ = {};
    received_ = backend_.allocate(needed, "exchange of gradients");
  }
  const auto half = [&](size_t step) { return reinterpret_cast<float*>(received_.data()) + step % halves * piece * size_t(size() - 1); };
  const Range own = parts[size_t(rank())];
  exchange_pieces(half(0), x, parts, 0, piece);
  for (size_t step = 0; step < steps; ++step) {
    const Moment here = backend_.now(Lane::exchange);
    if (step + 1 < steps) exchange_pieces(half(step + 1), x, parts, step + 1, piece);
    backend_.wait(Lane::compute, here);
    const Range mine = cut(own, step, piece);
    add_pieces(sum + (mine.begin - own.begin), x, half(step), mine, piece);
  }
}

void NcclComm::broadcast(std::byte* buffer, size_t bytes, int root) {
  if (!backend_.on_device(buffer)) return host_.broadcast(buffer, bytes, root);
  exchange([&](Group g) { check(library_.broadcast(buffer, buffer, bytes, NcclLibrary::uint8, root, g, stream_), "ncclBroadcast", g); });
}

}  // namespace

size_t device_exchange_bytes(int ranks, size_t longest_part) { return bytes_for_sums(ranks, longest_part, NcclLibrary().round_floats); }

std::unique_ptr<Comm> make_nccl_comm(Comm& host, Backend& backend, const NcclLibrary& library) {
  return std::make_unique<NcclComm>(host, backend, library);
}

}  // namespace tessera
