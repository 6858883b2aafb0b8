#include "data/loader.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"

namespace tessera {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Batch collate(const std::vector<const Example*>& examples) {
  Batch out;
  out.B = int64_t(examples.size());
  for (const Example* e : examples) out.T = std::max(out.T, int64_t(e->ids.size()));
  const auto n = size_t(out.B * out.T);
  out.ids.assign(n, 0);
  out.targets.assign(n, -100);
  out.positions.resize(n);
  out.starts.assign(n, 0);
  out.row_keys.assign(examples.size(), 0);
  out.rows.assign(examples.size(), 0);
  for (int64_t b = 0; b < out.B; ++b) {
    const Example& e = *examples[size_t(b)];
    assert(e.ids.size() == e.labels.size());
    std::copy(e.ids.begin(), e.ids.end(), out.ids.begin() + b * out.T);
    if (!e.labels.empty()) std::copy(e.labels.begin() + 1, e.labels.end(), out.targets.begin() + b * out.T);
    std::iota(out.positions.begin() + b * out.T, out.positions.begin() + (b + 1) * out.T, 0);
    out.input_tokens += int64_t(e.ids.size());
  }
  out.target_tokens = int64_t(n) - std::count(out.targets.begin(), out.targets.end(), -100);
  return out;
}

Loader::Loader(const Dataset& data, LoaderOptions options) : data_(data), options_(options) {
  if (data.size() == 0) fail("loader", "the data set has no rows", "at least one row", "give other data");
  if (options.batch_size < 1) fail("batch_size", str(options.batch_size), "1 or more", "give a number of rows");
  if (options.micro_batches < 1)
    fail("gradient_accumulation_steps", str(options.micro_batches), "1 or more", "give a number of micro-batches");
}

int64_t Loader::steps_per_epoch() const { return ceil_div(data_.size(), options_.batch_size * options_.micro_batches); }

void Loader::resume(LoaderState state) {
  if (state.epoch < 0 || state.window < 0 || state.window >= steps_per_epoch())
    fail("checkpoint", str("it stands in epoch ", state.epoch, " before step ", state.window),
         str("steps 0 to ", steps_per_epoch() - 1, " of an epoch"), "resume with the same data, batch size and number of micro-batches");
  state_ = state;
}

std::vector<Batch> Loader::next(int rank, int ranks) {
  assert(ranks > 0 && rank >= 0 && rank < ranks);
  const int64_t n = data_.size();
  if (order_epoch_ != state_.epoch) {
    order_epoch_ = state_.epoch;
    if (options_.shuffle)
      order_ = shuffled(n, options_.seed, uint64_t(state_.epoch));
    else
      order_.resize(size_t(n)), std::iota(order_.begin(), order_.end(), 0);
  }
  std::vector<Batch> out;
  for (int64_t step = 0; step < ceil_div(options_.micro_batches, ranks); ++step) {
    const int64_t m = step * ranks + rank;
    const int64_t begin = (state_.window * options_.micro_batches + m) * options_.batch_size;
    const int64_t end = m < options_.micro_batches ? std::min(begin + options_.batch_size, n) : begin;
    std::vector<const Example*> examples;
    for (int64_t i = begin; i < end; ++i) examples.push_back(&data_[order_[size_t(i)]]);
    Batch& batch = out.emplace_back(collate(examples));
    for (int64_t b = 0; b < batch.B; ++b) {
      batch.row_keys[size_t(b)] = state_.epoch * n + begin + b;
      batch.rows[size_t(b)] = data_.source_row(order_[size_t(begin + b)]);
    }
  }
  if (++state_.window == steps_per_epoch()) state_ = {state_.epoch + 1, 0};
  return out;
}

}  // namespace tessera
