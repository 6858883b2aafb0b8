// How often the host waits for a device in a training step: for the largest square of the gradient, for their sum and for the losses,
// whatever the number of micro-batches. And the losses that come back so late.
#include <algorithm>
#include <map>

#include "train/tiny_runs.h"

namespace tessera {
namespace {

// What made the host wait, and how often. A device may wait for less; none waits for more.
using Waits = std::map<std::string, int64_t>;

// Passes every call on and notes those at which a GPU makes the host wait.
class WaitCounter final : public Backend {
 public:
  WaitCounter(std::unique_ptr<Backend> owned, Waits& waits) : owned_(std::move(owned)), b_(*owned_), waits_(waits) {}
  std::string describe() const override { return b_.describe(); }
  int threads() const override { return b_.threads(); }
  Ledger& ledger() override { return b_.ledger(); }
  Ledger& host_ledger() override { return b_.host_ledger(); }
  size_t total_memory() const override { return b_.total_memory(); }
  size_t free_memory() const override { return b_.free_memory(); }
  bool on_device(const void* p) const override { return b_.on_device(p); }
  bool host_can_read() const override { return b_.host_can_read(); }
  Moment now(Lane lane) override { return b_.now(lane); }
  void wait(Lane lane, Moment m) override { b_.wait(lane, m); }
  void* native(Lane lane) override { return b_.native(lane); }

  Buffer reserve(size_t bytes, const char* what) override {
    ++waits_[std::string("memory for ") + what];
    return b_.reserve(bytes, what);
  }
  Buffer reserve_pinned(size_t bytes, const char* what) override {
    ++waits_[std::string("pinned memory for ") + what];
    Buffer out = b_.reserve_pinned(bytes, what);
    pinned_[out.data()] = out.bytes();
    return out;
  }
  Buffer pin(void* data, size_t bytes, const char* what) override {
    pinned_[static_cast<std::byte*>(data)] = bytes;
    return b_.pin(data, bytes, what);
  }
  void copy(void* to, const void* from, size_t bytes) override {
    if (!on_device(to)) ++waits_["a copy to the host"];
    if (!on_device(from) && !pinned(from)) ++waits_["a copy from memory that is not pinned"];
    b_.copy(to, from, bytes);
  }
  void copy_beside(void* to, const void* from, size_t bytes) override {
    for (const void* p : {static_cast<const void*>(to), from})
      if (!on_device(p) && !pinned(p)) ++waits_["a copy beside, of memory that is not pinned"];
    b_.copy_beside(to, from, bytes);
  }
  void finish() override {
    ++waits_["finish"];
    b_.finish();
  }

  void fill_zero(Tensor x) override { b_.fill_zero(x); }
  void gemm(const Product& p) override { b_.gemm(p); }
  bool drops_inside(std::span<const AdapterProduct> all) const override { return b_.drops_inside(all); }
  void adapters(std::span<const AdapterProduct> all, Tensor x, Tensor room) override { b_.adapters(all, x, room); }
  void adapters_backward(std::span<const AdapterProduct> all, Tensor x, Tensor room) override { b_.adapters_backward(all, x, room); }
  void adapters_input_gradient(Tensor dx, std::span<const AdapterProduct> all, Tensor room) override {
    b_.adapters_input_gradient(dx, all, room);
  }
  void convert(Tensor out, Tensor x) override { b_.convert(out, x); }
  void add(Tensor out, Tensor x, Tensor y) override { b_.add(out, x, y); }
  void accumulate(Tensor sum, Tensor x) override { b_.accumulate(sum, x); }
  void add_bias(Tensor y, Tensor bias) override { b_.add_bias(y, bias); }
  void column_sum(Tensor sum, Tensor x) override { b_.column_sum(sum, x); }
  void random_normal(Tensor out, uint64_t key, uint64_t begin, float scale) override { b_.random_normal(out, key, begin, scale); }
  void dropout(Tensor out, Tensor x, Tensor keys, uint64_t key, float p) override { b_.dropout(out, x, keys, key, p); }
  void embedding(Tensor out, Tensor table, Tensor ids) override { b_.embedding(out, table, ids); }
  void embedding_backward(Tensor dtable, Tensor dout, Tensor ids) override { b_.embedding_backward(dtable, dout, ids); }
  void gather_rows(Tensor out, Tensor x, Tensor index) override { b_.gather_rows(out, x, index); }
  void scatter_rows(Tensor out, Tensor x, Tensor index) override { b_.scatter_rows(out, x, index); }
  void rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) override { b_.rmsnorm(out, rstd, x, w, eps); }
  void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulates) override {
    b_.rmsnorm_backward(dx, dw, dy, x, w, rstd, accumulates);
  }
  void rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) override { b_.rope(x, cos, sin, positions, inverse); }
  void swiglu(Tensor out, Tensor gate, Tensor up) override { b_.swiglu(out, gate, up); }
  void swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) override {
    b_.swiglu_backward(dgate, dup, dout, gate, up);
  }
  void attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape s) override {
    b_.attention(out, lse, q, k, v, starts, s);
  }
  void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts,
                          AttentionShape s) override {
    b_.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, starts, s);
  }
  void cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) override {
    b_.cross_entropy(loss, gradient, logits, labels, scale);
  }
  void codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block) override {
    b_.codebook4_encode(codes, absmax, x, table, block);
  }
  void codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block) override {
    b_.codebook4_decode(out, codes, absmax, table, block);
  }
  void nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map) override {
    b_.nested_decode(absmax, q, scale, offset, map);
  }
  void nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map) override {
    b_.nested_encode(q, scale, absmax, offset, map);
  }
  void adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep& s) override {
    b_.adamw(value, m, v, gradient, copy, s);
  }
  void square_sums(Tensor sums, Tensor x) override { b_.square_sums(sums, x); }
  void largest(Tensor parts, Tensor x) override { b_.largest(parts, x); }
  void sum_units(Tensor parts, Tensor x, int exponent) override { b_.sum_units(parts, x, exponent); }

 private:
  bool pinned(const void* p) const {
    const auto* const at = static_cast<const std::byte*>(p);
    return std::any_of(pinned_.begin(), pinned_.end(),
                       [&](const auto& range) { return at >= range.first && at < range.first + range.second; });
  }

  std::unique_ptr<Backend> owned_;
  Backend& b_;
  Waits& waits_;
  std::map<const std::byte*, size_t> pinned_;
};

std::vector<const char*> devices_apart() {
  std::vector<const char*> out;
  for (const char* device : f32_devices())
    if (!make_test_backend(device, 1)->host_can_read()) out.push_back(device);
  return out;
}

class StepWaits : public TinyRuns, public testing::WithParamInterface<const char*> {
 protected:
  StepWaits() {  // each row is longer than those before it
    std::string rows, ids = "1";
    for (int i = 0; i < 18; ++i) rows += str("{\"input_ids\": [", ids += str(", ", 2 + i * 3), "]}\n");
    write_file_atomic(folder_.path("rows.jsonl"), rows);
  }
  Waits waits_of(TrainConfig c, int64_t steps) const {
    Waits waits;
    c.device = GetParam();
    c.shuffle = false;
    c.context_length = 19;  // of the last row
    c.max_steps = steps;
    c.gradient_accumulation_steps = 3;
    c.save_model = false;
    const auto comm = make_single_comm();
    train(c, *comm, {}, {},
          [&](std::string_view device, int threads) { return std::make_unique<WaitCounter>(make_test_backend(device, threads), waits); });
    return waits;
  }
  // Of the third step.
  Waits of_a_step(const TrainConfig& c) const {
    Waits more = waits_of(c, 3);
    for (const auto& [what, count] : waits_of(c, 2)) more[what] -= count;
    std::erase_if(more, [](const auto& entry) { return entry.second == 0; });
    return more;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, StepWaits, testing::ValuesIn(devices_apart()), [](const auto& info) { return std::string(info.param); });

TEST_P(StepWaits, AreThreeOfAnyNumberOfMicroBatches) {
  for (const char* type : {"qlora", "full"})
    for (const bool offload : {false, true}) {
      TrainConfig c = config(type, type);
      c.use_cpu_offload = c.use_activation_cpu_offload = offload;
      c.gradient_checkpointing = "true";
      EXPECT_EQ(of_a_step(c), (Waits{{"a copy to the host", 3}})) << type << (offload ? ", offloaded" : "");
    }
}

// AdamW of the host needs each unit's gradient there.
TEST_P(StepWaits, AreOneMoreForEachUnitWithTheOptimizerOnTheHost) {
  TrainConfig c = config("lora", "lora");
  c.optimizer_offload = true;
  EXPECT_EQ(of_a_step(c), (Waits{{"a copy to the host", 3 + 3}}));
}

class LateLosses : public TinyRuns, public testing::WithParamInterface<const char*> {
 protected:
  static std::vector<Batch> batches() {
    std::vector<Batch> out;
    for (const int length : {9, 15, 4, 0, 11}) {
      Example row;
      for (int i = 0; i < length; ++i) row.ids.push_back(1 + (i * 7 + length) % 60);
      row.labels = row.ids;
      out.push_back(length ? collate({&row, &row}) : Batch{});
    }
    out.back().targets.assign(out.back().targets.size(), -100);
    out.back().target_tokens = 0;
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, LateLosses, testing::ValuesIn(f32_devices()), [](const auto& info) { return std::string(info.param); });

// Taken at the end of a step or after each micro-batch; with room for all of them, for the small ones, or for none.
TEST_P(LateLosses, AreThoseOfEachMicroBatch) {
  ModelRequest request = model_request(config("full", ""));
  std::vector<std::map<std::string, std::vector<double>>> gradients;
  std::vector<double> wanted;
  for (const auto& [room, length] : {std::pair<int64_t, int64_t>{5, 16}, {2, 16}, {3, 5}, {0, 0}})
    for (const bool each : {true, false}) {
      request.micro_batches = room, request.length = length;
      TestModel m(request, GetParam());
      std::vector<double> losses;
      const auto take = [&] {
        for (const double loss : m.model.pass.take_losses()) losses.push_back(loss);
      };
      m.model.sharded.zero_gradients();
      for (const Batch& b : batches()) {
        m.model.pass.train(b, 0.1f);
        if (each) take();
      }
      take();
      take();
      if (wanted.empty()) wanted = losses;
      EXPECT_EQ(losses, wanted) << "room for " << room << " of " << length;
      gradients.push_back(m.gradients());
      EXPECT_EQ(gradients.back(), gradients.front()) << "room for " << room << " of " << length;
    }
  TestModel other(request, GetParam());
  ASSERT_EQ(wanted.size(), batches().size());
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_EQ(wanted[i], other.model.pass.evaluate(batches()[i])) << i;
  EXPECT_GT(wanted[0], 0);
  EXPECT_EQ(wanted[3], 0);
  EXPECT_EQ(wanted[4], 0);
}

}  // namespace
}  // namespace tessera
