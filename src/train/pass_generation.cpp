// Generation through a pass: the caches of keys and values, and the few tokens of each call.
#include <cassert>
#include <numeric>

#include "train/pass.h"

namespace tessera {

void Pass::begin_generation(int64_t capacity) {
  const ModelConfig& c = model_.config;
  const size_t layer_bytes = size_t(capacity * c.kv_heads * c.head_dim) * size_of(model_.options.compute);
  cache_memory_ = backend_.allocate(2 * layer_bytes * size_t(c.layers), "keys and values");
  caches_.clear();
  std::byte* at = cache_memory_.data();
  for (int64_t l = 0; l < c.layers; ++l, at += 2 * layer_bytes) {
    const Shape shape{1, capacity, c.kv_heads, c.head_dim};
    caches_.push_back(
        {Tensor{at, model_.options.compute, shape, &backend_}, Tensor{at + layer_bytes, model_.options.compute, shape, &backend_}, 0});
  }
  next_logits_.resize(size_t(c.vocab));
  ensure_rope(capacity);
}

const std::vector<float>& Pass::extend(const std::vector<int32_t>& new_ids) {
  assert(!caches_.empty() && caches_[0].length + int64_t(new_ids.size()) <= caches_[0].k.shape.dim[1]);
  Batch b;
  b.B = 1, b.T = int64_t(new_ids.size());
  b.ids = new_ids;
  b.positions.resize(new_ids.size());
  std::iota(b.positions.begin(), b.positions.end(), int32_t(caches_[0].length));
  b.starts.assign(new_ids.size(), 0);
  b.row_keys.assign(1, 0);
  const ArenaScope scope(arena_);
  const DeviceBatch there = to_device(b, arena_);
  const Tensor last = to_device({int32_t(b.T - 1)}, arena_, "last row");
  const Context ctx = context(b, there, false);
  extending_ = true;
  const Tensor x = forward(there.ids, ctx, ctx.take(b.T, model_.config.hidden, "embedded ids"), nullptr, nullptr, nullptr);
  extending_ = false;
  for (KvCache& cache : caches_) cache.length += b.T;
  const Tensor logits = arena_.take(Dtype::f32, {1, model_.config.vocab}, "logits");
  root_logits(logits, bound_root(false), x, last, ctx);
  sharded_.release(model_.root_unit(), true);
  backend_.copy(next_logits_.data(), logits.data, logits.bytes());
  return next_logits_;
}

}  // namespace tessera
