// Pass: one batch through the model and back. The only file where layers, sharding, recompute and memory meet.
//
// Forward:  x = embed(ids); per layer: prefetch the next unit, bind this one, keep x, forward, release.
// Backward: the loss and its gradient in chunks; per layer, reversed: bind, forward again from the kept x (with gradient checkpointing),
//           backward, reduce the unit's gradients, release. The root's gradients (embedding, norm, head) are reduced last.
// Without gradient checkpointing every layer's DecoderSaved stays in the arena between the two.
// Collective: every rank calls the same functions in the same order, also with an empty batch (B = 0).
#pragma once
#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "data/loader.h"
#include "fsdp/sharded.h"
#include "models/model.h"

namespace tessera {

struct PassOptions {
  bool gradient_checkpointing = true;
  uint64_t seed = 42;  // of dropout
};

class Pass {
 public:
  Pass(Model&, Sharded&, Backend&, Arena&, PassOptions);
  // Forward and backward. Returns the sum of -log p over the batch's targets. Gradients are those of `scale` times that sum, added to
  // the owners' sums.
  double train(const Batch&, float scale);
  // Forward only: the sum of -log p over the targets.
  double evaluate(const Batch&);
  // The residual stream after each step of a forward pass, for tests and tools: called with -1 (embedding) and each layer's number.
  using Watch = void (*)(void* context, int layer, Tensor x);
  // Logits f32 (rows, V) of all positions of a batch, to host memory.
  std::vector<float> logits(const Batch&, Watch watch = nullptr, void* watch_context = nullptr);
  Tensor embedding_gradient() const { return dx_; }  // after train(): d loss / d x at the embedding, valid until the next call

  // Generation, one row: runs `count` new ids at positions [length, length + count) through caches; logits (V) f32 of the last one.
  void begin_generation(int64_t capacity);
  std::vector<float> extend(const std::vector<int32_t>& ids);

 private:
  Context context(const Batch&, bool training);
  Tensor ids(const Batch&);
  void ensure_rope(int64_t positions);
  DecoderLayer& bound_layer(int l, bool gradients);
  Root& bound_root(bool gradients);
  Tensor forward(const Batch&, const Context&, Tensor x, std::vector<Tensor>* inputs, std::vector<DecoderSaved>* saved, Watch, void*);
  void backward(const Context&, const std::vector<Tensor>& inputs, const std::vector<DecoderSaved>& saved);
  void forward_nothing(bool training);
  void train_nothing();

  Model& model_;
  Sharded& sharded_;
  Backend& backend_;
  Arena& arena_;
  PassOptions options_;
  Buffer rope_memory_, cache_memory_;
  Tensor cos_, sin_, dx_;
  std::vector<KvCache> caches_;
  bool extending_ = false;  // the forward pass reads and fills the caches
};

}  // namespace tessera
