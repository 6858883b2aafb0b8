#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/text.h"
#include "ops/adamw.h"
#include "optim/clip.h"

namespace tessera {
namespace {

constexpr int64_t device_parts = 512;  // of the norm's sums: blocks of threads, a few on each multiprocessor

bool decays(const std::string& name) { return !ends_with(name, ".bias") && !ends_with(name, "norm.weight"); }

Tensor part_of(Tensor owned, Range mine, Range own) {
  if (owned.empty()) return owned;
  return owned.reshaped({owned.size(), 1}).rows_from(int64_t(own.begin - mine.begin), int64_t(own.size())).reshaped({int64_t(own.size())});
}

}  // namespace

Optimizer::Optimizer(const Model& model, Sharded& sharded, Backend& backend, OptimizerOptions options)
    : model_(model), sharded_(sharded), options_(options), backend_(backend), masters_home_(sharded.values(0).home) {
  size_t most = 0, copy_bytes = 0;
  for (int unit = 0; unit < sharded.units(); ++unit) {
    const size_t n = sharded.trainable_range(unit).size(), bytes = 2 * n * sizeof(float);
    memory_.push_back(!n          ? Buffer{}
                      : on_host() ? backend.allocate_pinned(bytes, "optimizer state")
                                  : backend.allocate(bytes, "optimizer state"));
    most = std::max(most, n);
    if (const Tensor copies = sharded.copies(unit); copies.dtype != Dtype::f32) copy_bytes = std::max(copy_bytes, copies.bytes());
  }
  if (on_host() && most) {
    host_gradient_ = backend.allocate_pinned(most * sizeof(float), "gradient of a layer");
    if (copy_bytes) host_copy_ = backend.allocate_pinned(copy_bytes, "trainable values in compute precision");
  }
  norm_parts_ = backend.allocate(size_t(backend.host_can_read() ? 1 : device_parts) * 2 * sizeof(int64_t), "sums of squares");
}

Tensor Optimizer::exp_avg(int unit) const {
  return {memory_[size_t(unit)].data(), Dtype::f32, {int64_t(sharded_.trainable_range(unit).size())}, masters_home_};
}

Tensor Optimizer::exp_avg_sq(int unit) const {
  const auto n = int64_t(sharded_.trainable_range(unit).size());
  std::byte* const data = memory_[size_t(unit)].data();
  return {data ? data + size_t(n) * sizeof(float) : nullptr, Dtype::f32, {n}, masters_home_};
}

size_t Optimizer::bytes() const {
  size_t n = 0;
  for (const Buffer& b : memory_) n += b.bytes();
  return n;
}

// Units that lie side by side are one tensor.
std::vector<Tensor> Optimizer::square_sums() {
  std::vector<Tensor> runs;
  for (int unit = 0; unit < sharded_.units(); ++unit) {
    const Tensor sums = sharded_.counts_once(unit) ? sharded_.square_sums(unit) : Tensor{};
    if (sums.empty() || sums.size() == 0) continue;
    if (!runs.empty() && runs.back().as<double>() + runs.back().size() == sums.as<double>())
      runs.back().shape = {runs.back().size() + sums.size()};
    else
      runs.push_back(sums);
  }
  return runs;
}

float Optimizer::gradient_norm() {
  const int64_t parts = int64_t(norm_parts_.bytes() / (2 * sizeof(int64_t)));
  SquareSum sum({norm_parts_.data(), Dtype::i64, {parts, 2}, &backend_});
  for (const Tensor& sums : square_sums()) sum.add(sums);
  Comm& comm = sharded_.comm();
  const auto largest = gather_values(comm, sum.largest());
  const double most = *std::max_element(largest.begin(), largest.end());
  if (!std::isfinite(most)) return std::numeric_limits<float>::infinity();
  const int exponent = SquareSum::exponent_for(most);
  const SquareSum::Total mine = sum.total(exponent);
  const auto high = gather_values(comm, mine.high), low = gather_values(comm, int64_t(mine.low));
  SquareSum::Total all;
  for (size_t r = 0; r < high.size(); ++r) all = SquareSum::sum(all, {high[r], uint64_t(low[r])});
  return float(std::sqrt(SquareSum::value(all, exponent)));
}

void Optimizer::step(int64_t step, double lr, float norm) {
  backend_.ledger().enter("step");
  AdamwStep s;
  s.lr = lr, s.beta1 = options_.beta1, s.beta2 = options_.beta2, s.eps = options_.eps;
  s.step = step;
  s.gradient_scale = clip_coefficient(norm, float(options_.max_grad_norm));
  for (int unit = 0; unit < sharded_.units(); ++unit)
    if (sharded_.trainable_range(unit).size()) update(unit, s);
  sharded_.updated();
}

// A tensor of the device in `room`, which is large enough; its numbers are not copied.
Tensor Optimizer::on_host(Tensor there, Buffer& room) {
  there.data = room.data();
  there.home = masters_home_;
  return there;
}

// On the host: room is written again when the copies out of it, which the first copy waits for, are through.
void Optimizer::update(int unit, AdamwStep s) {
  const Range mine = sharded_.trainable_range(unit);
  const Tensor values = sharded_.values(unit), there = sharded_.copies(unit);
  Tensor gradients = sharded_.gradients(unit), copies = there;
  if (on_host()) {
    const Tensor sums = gradients;
    gradients = on_host(sums, host_gradient_);
    backend_.copy(gradients.data, sums.data, sums.bytes());
    copies = there.dtype == Dtype::f32 ? Tensor{} : on_host(there, host_copy_);
  }
  for (const PartPlace& part : model_.units[size_t(unit)].parts) {
    const Range own = part.trains ? intersect(part.element_range(), mine) : Range{};
    if (!own.size()) continue;
    s.weight_decay = options_.decay_norms_and_biases || decays(part.name) ? options_.weight_decay : 0;
    adamw(part_of(values, mine, own), part_of(exp_avg(unit), mine, own), part_of(exp_avg_sq(unit), mine, own),
          part_of(gradients, mine, own), part_of(copies, mine, own), s);
  }
  if (on_host()) backend_.copy(there.data, copies.empty() ? values.data : copies.data, there.bytes());
}

}  // namespace tessera
