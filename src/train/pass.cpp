#include "train/pass.h"

#include <algorithm>
#include <numeric>

#include "backend/profile.h"
#include "ops/elementwise.h"

namespace tessera {
Pass::Pass(Model& model, Sharded& sharded, Backend& backend, Arena& arena, uint64_t seed)
    : model_(model), sharded_(sharded), backend_(backend), arena_(arena), seed_(seed), batches_(backend) {}

void Pass::reserve(int64_t micro_batches, int64_t rows, int64_t length) {
  if (backend_.host_can_read()) return;
  batches_.reserve(micro_batches, rows, rows * length);
  ensure_rope(length);
}

void Pass::ensure_rope(int64_t positions) {
  if (!cos_.empty() && cos_.shape.dim[0] >= positions) return;
  const RopeTables t = rope_tables(model_.config, positions);
  const size_t bytes = t.cos.size() * sizeof(float);
  rope_memory_ = backend_.allocate(2 * bytes, "rope tables");
  cos_ = Tensor{rope_memory_.data(), Dtype::f32, {positions, t.half}, &backend_};
  sin_ = Tensor{rope_memory_.data() + bytes, Dtype::f32, {positions, t.half}, &backend_};
  backend_.copy(cos_.data, t.cos.data(), bytes);
  backend_.copy(sin_.data, t.sin.data(), bytes);
}

Context Pass::context(const Batch& b, const DeviceBatch& there, bool training) {
  int32_t last = 0;
  for (const int32_t p : b.positions) last = std::max(last, p);
  ensure_rope(std::max<int64_t>(last + 1, cos_.empty() ? 1 : cos_.shape.dim[0]));
  Context ctx(arena_);
  ctx.dtype = model_.options.compute;
  ctx.B = b.B, ctx.T = b.T;
  ctx.positions = there.positions, ctx.starts = there.starts, ctx.row_keys = there.row_keys;
  ctx.cos = cos_, ctx.sin = sin_;
  ctx.seed = seed_;
  ctx.training = training;
  return ctx;
}

DecoderLayer& Pass::bound_layer(int l, bool gradients) {
  const auto view = in_phase(Phase::communication, [&] { return sharded_.acquire(l); });
  bind(model_, l, view.frozen, view.trainable, gradients && model_.units[size_t(l)].trainable ? sharded_.gradient(l) : Tensor{}, &backend_);
  return model_.layers[size_t(l)];
}

Root& Pass::bound_root(bool gradients) {
  const int unit = model_.root_unit();
  const auto view = in_phase(Phase::communication, [&] { return sharded_.acquire(unit); });
  bind(model_, unit, view.frozen, view.trainable, gradients && model_.units[size_t(unit)].trainable ? sharded_.gradient(unit) : Tensor{},
       &backend_);
  if (view.looked_up) model_.root.embed.value.data = const_cast<std::byte*>(view.looked_up);
  return model_.root;
}

Keep Pass::keep_of(int layer) const {
  if (int64_t(model_.layers.size()) - layer <= keeping_.layers) return Keep::all;
  return keeping_.attention ? Keep::attention : Keep::input;
}

void Pass::keep_on_host(int64_t tokens) {
  const int64_t layers = std::max<int64_t>(0, int64_t(model_.layers.size()) - keeping_.layers);
  if (layers == 0) return;
  keeping_.attention = false;
  inputs_.emplace(backend_, int(layers), size_t(tokens * model_.config.hidden) * size_of(model_.options.compute));
}

Tensor Pass::take_input(const Context& ctx, int layer, const char* name) {
  return waits(layer) ? inputs_->place(layer) : ctx.take(ctx.rows(), model_.config.hidden, name);
}

// x after the last layer. With `kept` each layer keeps its input and what it was told to keep; without, two buffers alternate.
Tensor Pass::forward(Tensor ids, const Context& base, Tensor x, std::vector<LayerKept>* kept, Watch watch, void* watch_context) {
  const ProfileScope phase(Phase::forward);
  const ArenaLabel label(arena_, kept ? "saved activations" : "scratch");
  const int layers = int(model_.layers.size());
  root_embed(x, bound_root(false), ids);
  if (watch) watch(watch_context, -1, x);
  Tensor spare = kept ? Tensor{} : base.take(x.rows(), x.cols(), "residual");
  sharded_.prefetch(0);
  for (int l = 0; l < layers; ++l) {
    sharded_.prefetch(l + 1 < layers ? l + 1 : -1);
    if (kept && waits(l)) inputs_->send(l);
    Context ctx = base;
    if (extending_) ctx.cache = &caches_[size_t(l)];
    const DecoderLayer& layer = bound_layer(l, false);
    const Tensor y = kept ? take_input(ctx, l + 1, "residual") : spare;
    LayerKept mine{kept ? keep_of(l) : Keep::input, {.x = x}, {}};
    if (mine.keep == Keep::attention) mine.start = take_kept(layer, x, ctx);
    if (mine.keep == Keep::all) {
      mine.saved = take_saved(layer, mine.start, ctx);
      decoder_forward(y, layer, mine.saved, ctx);
    } else {
      const ArenaScope scope(arena_);
      const ArenaLabel passing_label(arena_, "scratch");
      DecoderSaved passing = take_saved(layer, mine.start, ctx);
      decoder_forward(y, layer, passing, ctx);
    }
    if (kept) kept->push_back(mine);
    sharded_.release(l, !kept);
    spare = x;
    x = y;
    if (watch) watch(watch_context, l, x);
  }
  return x;
}

// dx_ holds the gradient of the last layer's output on entry, of the embedding's output on return.
void Pass::backward(const Context& ctx, const std::vector<LayerKept>& kept) {
  const ProfileScope phase(Phase::backward);
  backend_.ledger().enter("backward");
  const int layers = int(model_.layers.size());
  sharded_.prefetch(layers - 1);
  for (int l = layers - 1; l >= 0; --l) {
    sharded_.prefetch(l - 1);
    const ArenaScope scope(arena_);
    const DecoderLayer& layer = bound_layer(l, true);
    LayerKept mine = kept[size_t(l)];
    if (waits(l)) mine.start.x = inputs_->take(l);
    if (waits(l - 1)) inputs_->fetch(l - 1);
    DecoderSaved saved = mine.saved;
    if (mine.keep != Keep::all) {
      saved = take_saved(layer, mine.start, ctx);
      in_phase(Phase::recompute, [&] { decoder_recompute(layer, saved, mine.keep == Keep::attention, ctx); });
    }
    decoder_backward(dx_, layer, saved, ctx);
    sharded_.reduce(l);
    sharded_.release(l, true);
  }
}

// The collectives of forward() and of train() for a rank without rows.
void Pass::forward_nothing(bool training) {
  const int layers = int(model_.layers.size());
  sharded_.acquire(model_.root_unit());
  sharded_.prefetch(0);
  for (int l = 0; l < layers; ++l) {
    sharded_.prefetch(l + 1 < layers ? l + 1 : -1);
    sharded_.acquire(l);
    sharded_.release(l, !training);
  }
}

void Pass::train_nothing() {
  const auto reduce = [&](int unit) {
    sharded_.acquire(unit);
    if (model_.units[size_t(unit)].trainable) sharded_.gradient(unit);
    sharded_.reduce(unit);
    sharded_.release(unit, true);
  };
  forward_nothing(true);
  sharded_.prefetch(int(model_.layers.size()) - 1);
  for (int l = int(model_.layers.size()) - 1; l >= 0; --l) {
    sharded_.prefetch(l - 1);
    reduce(l);
  }
  reduce(model_.root_unit());
}

void Pass::train(const Batch& b, float scale) {
  backend_.ledger().enter("forward");
  if (b.B == 0) {
    train_nothing();
    return batches_.add({});
  }
  const ArenaScope scope(arena_);
  const DeviceBatch there = batches_.send(b, arena_);
  const Context ctx = context(b, there, true);
  dx_ = ctx.take(b.B * b.T, model_.config.hidden, "residual gradient");
  std::vector<LayerKept> kept;
  if (inputs_) {
    const ArenaLabel label(arena_, "saved activations");
    const Tensor even = ctx.take(b.B * b.T, model_.config.hidden, "residual"), odd = ctx.take(b.B * b.T, model_.config.hidden, "residual");
    inputs_->begin(even, odd);
  }
  const Tensor x0 = take_input(ctx, 0, "embedded ids");
  const Tensor x = forward(there.ids, ctx, x0, &kept, nullptr, nullptr);
  in_phase(Phase::head, [&] {
    const ArenaLabel label(arena_, "logits and loss");
    root_loss(there.losses, bound_root(true), x, there.targets, dx_, scale, ctx);
  });
  backward(ctx, kept);
  in_phase(Phase::backward, [&] { root_embed_backward(bound_root(true), dx_, there.ids); });
  sharded_.reduce(model_.root_unit());
  sharded_.release(model_.root_unit(), true);
  batches_.add(there.losses);
}

double Pass::forward_loss(const Batch& b, bool training, Watch watch, void* watch_context) {
  backend_.ledger().enter("evaluate");
  if (b.B == 0) {
    forward_nothing(false);
    sharded_.release(model_.root_unit(), true);
    return 0;
  }
  const ArenaScope scope(arena_);
  const DeviceBatch there = to_device(b, arena_);
  const Context ctx = context(b, there, training);
  const Tensor x = forward(there.ids, ctx, ctx.take(b.B * b.T, model_.config.hidden, "embedded ids"), nullptr, watch, watch_context);
  const ArenaLabel label(arena_, "logits and loss");
  root_loss(there.losses, bound_root(false), x, there.targets, Tensor{}, 0, ctx);
  sharded_.release(model_.root_unit(), true);
  return sum_of_losses(there.losses);
}

std::vector<float> Pass::logits(const Batch& b, Watch watch, void* watch_context) {
  const ArenaScope scope(arena_);
  const DeviceBatch there = to_device(b, arena_);
  const Context ctx = context(b, there, false);
  const Tensor x = forward(there.ids, ctx, ctx.take(b.B * b.T, model_.config.hidden, "embedded ids"), nullptr, watch, watch_context);
  std::vector<int32_t> rows(size_t(b.B * b.T));
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> out(rows.size() * size_t(model_.config.vocab));
  const Tensor logits = arena_.take(Dtype::f32, {b.B * b.T, model_.config.vocab}, "logits");
  root_logits(logits, bound_root(false), x, to_device(rows, arena_, "rows"), ctx);
  sharded_.release(model_.root_unit(), true);
  backend_.copy(out.data(), logits.data, logits.bytes());
  return out;
}

}  // namespace tessera
