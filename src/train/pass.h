// Pass: one batch through the model and back. The only file where layers, sharding, recompute and memory meet.
//
// Forward:  x = embed(ids); per layer: prefetch the next unit, bind this one, keep x, forward, release.
// Backward: the loss and its gradient in chunks; per layer, reversed: bind, recompute what was not kept, backward, reduce the unit's
//           gradients, release. The root's gradients (embedding, norm, head) are reduced last.
// What is kept of a layer changes time and memory, never a bit of the result.
// A batch goes to the device in one copy from pinned memory, and losses stay there until take_losses(): the host waits for the device once
// in a step, however many micro-batches it has.
// Collective: every rank calls the same functions in the same order, also with an empty batch (B = 0).
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "core/arena.h"
#include "data/loader.h"
#include "fsdp/sharded.h"
#include "models/model.h"
#include "train/device_batch.h"
#include "train/waiting_inputs.h"

namespace tessera {

// What of a layer stays in memory from forward to backward: its input; also its attention half; or all that backward needs.
enum class Keep { input, attention, all };

struct Keeping {
  int64_t layers = 0;      // the last ones keep all, because they are needed first; as many as the model has: no gradient checkpointing
  bool attention = false;  // the others keep the attention half
  static constexpr int64_t all_layers = INT64_MAX;
};

class Pass {
 public:
  Pass(Model&, Sharded&, Backend&, Arena&, uint64_t seed);  // seed: of dropout
  void keep(Keeping k) { keeping_ = k; }
  // The inputs of layers that keep nothing else wait on the host, of batches of up to so many tokens. REQUIRES: a device; after keep().
  void keep_on_host(int64_t tokens);
  // On a device, room for the micro-batches of a training step, each of at most so many rows of at most `length` tokens, and the rope
  // tables: no step has to make it, which takes a wait. Elsewhere nothing.
  void reserve(int64_t micro_batches, int64_t rows, int64_t length);
  // Forward and backward. Gradients are those of `scale` times the sum of -log p over the batch's targets, added to the owners' sums.
  void train(const Batch&, float scale);
  // That sum of each batch given to train() since the last call, in order. Here the host waits for the device.
  std::vector<double> take_losses() { return batches_.take(); }
  // Forward only: the sum of -log p over the targets.
  double evaluate(const Batch& b) { return forward_loss(b, false, nullptr, nullptr); }
  // The residual stream after each step of a forward pass, for tests and tools: called with -1 (embedding) and each layer's number.
  using Watch = void (*)(void* context, int layer, Tensor x);
  // The forward pass of train() alone, dropout included, to the same bits. `watch` is not called for an empty batch.
  double train_forward(const Batch& b, Watch watch, void* watch_context) { return forward_loss(b, true, watch, watch_context); }
  // Logits f32 (rows, V) of all positions of a batch, to host memory.
  std::vector<float> logits(const Batch&, Watch watch = nullptr, void* watch_context = nullptr);
  Tensor embedding_gradient() const { return dx_; }  // after train(): d loss / d x at the embedding, valid until the next call

  // Generation, one row: runs `count` new ids at positions [length, length + count) through caches; logits (V) f32 of the last one, valid
  // until the next call.
  void begin_generation(int64_t capacity);
  const std::vector<float>& extend(const std::vector<int32_t>& ids);

 private:
  Context context(const Batch&, const DeviceBatch&, bool training);
  void ensure_rope(int64_t positions);
  DecoderLayer& bound_layer(int l, bool gradients);
  Root& bound_root(bool gradients);
  struct LayerKept {
    Keep keep;
    DecoderKept start;
    DecoderSaved saved;  // with Keep::all
  };
  Keep keep_of(int layer) const;
  bool waits(int layer) const { return inputs_ && layer >= 0 && layer < inputs_->layers(); }
  Tensor take_input(const Context&, int layer, const char* name);
  Tensor forward(Tensor ids, const Context&, Tensor x, std::vector<LayerKept>* kept, Watch, void*);
  void backward(const Context&, const std::vector<LayerKept>& kept);
  double forward_loss(const Batch&, bool training, Watch, void*);
  void forward_nothing(bool training);
  void train_nothing();

  Model& model_;
  Sharded& sharded_;
  Backend& backend_;
  Arena& arena_;
  uint64_t seed_;
  Keeping keeping_;
  StepBatches batches_;
  std::optional<WaitingInputs> inputs_;
  Buffer rope_memory_, cache_memory_;
  Tensor cos_, sin_, dx_;
  std::vector<KvCache> caches_;
  std::vector<float> next_logits_;
  bool extending_ = false;  // the forward pass reads and fills the caches
};

}  // namespace tessera
