// Steps whose loss or gradient is not finite: named, written down, skipped or the end of the run, the same on every number of ranks.
#include "train/nonfinite.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>

#include "io/file.h"
#include "train/loop.h"
#include "train/output.h"
#include "train/train_test.h"

namespace tessera {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();

using Values = std::map<std::string, std::vector<float>>;

// Writes a file of F32 tensors again after f has changed their values.
template <class F>
void change(const std::string& path, F f) {
  Values values;
  std::vector<TensorToWrite> tensors;
  const TensorFiles files = TensorFiles::open(path);
  for (const auto& [name, stored] : files.all()) {
    auto& v = values[name];
    v.resize(size_t(stored.size()));
    std::memcpy(v.data(), stored.data, stored.bytes);
    tensors.push_back({name, Dtype::f32, stored.shape, v.data()});
  }
  f(values);
  write_safetensors(path, tensors, files.metadata());
}

// A tiny model with weights. Row 13 of the data, and no other, has token 63, at place 3.
class Nonfinite : public testing::Test {
 protected:
  Nonfinite() {
    for (const char* name : {"random", "model"}) make_folder(folder_.path(name));
    write_file_atomic(
        folder_.path("random/config.json"),
        R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": false, "rms_norm_eps": 1e-5, "initializer_range": 0.1})");
    ModelRequest r = dense_request(folder_.path("random"));
    r.init = "random";
    r.train_base = true;
    TestModel model(r);
    write_model(masters_of(model.model), folder_.path("model"), Dtype::f32);
    std::string rows;
    for (int i = 0; i < 16; ++i) {
      rows += "{\"input_ids\": [1";
      for (int t = 0; t < 5 + (i * 7) % 11; ++t) rows += ", " + std::to_string(i == 13 && t == 2 ? 63 : 2 + (i * 5 + t * 3) % 60);
      rows += "]}\n";
    }
    write_file_atomic(folder_.path("rows.jsonl"), rows);
  }

  TrainConfig config(const std::string& output, const std::string& train_type = "lora") const {
    TrainConfig c;
    c.model = folder_.path("model");
    c.dataset = folder_.path("rows.jsonl");
    c.train_type = train_type;
    c.precision = "fp32";
    c.lora_rank = 3, c.lora_dropout = 0.1;
    c.batch_size = 1;
    c.gradient_accumulation_steps = 4;
    c.max_steps = 8;
    c.lr = 1e-2;
    c.threads = 1;
    c.logging_steps = 100;
    c.output_dir = folder_.path(output);
    return c;
  }
  void run_on(int ranks, TrainConfig c) const {
    c.gradient_accumulation_steps /= ranks;
    run_local_ranks(ranks, [&](Comm& comm) { train(c, comm); });
  }
  void spoil_model(const std::string& tensor, float value, size_t begin = 0, size_t count = 1) const {
    change(folder_.path("model/model.safetensors"),
           [&](Values& values) { std::fill_n(values.at(tensor).begin() + std::ptrdiff_t(begin), count, value); });
  }
  void spoil_row_13() const { spoil_model("model.embed_tokens.weight", nan, 63 * 32 + 5); }

  std::string text(const std::string& name) const { return read_file(folder_.path(name)); }
  GoldenJson report(const std::string& output, int64_t step) const {
    return GoldenJson::parse(text(output + "/nonfinite-" + std::to_string(step) + ".json"));
  }
  std::vector<GoldenJson> log(const std::string& output) const {
    std::vector<GoldenJson> out;
    std::istringstream lines(text(output + "/train.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      GoldenJson json = GoldenJson::parse(line);
      if (json.contains("save_stall_seconds")) continue;
      out.push_back(json);
      for (const char* key : {"seconds", "tokens_per_second", "memory", "memory_peak"}) out.back().erase(key);
    }
    return out;
  }
  std::string hash(const std::string& name) const { return sha256_file(folder_.path(name)); }

  const TestFolder folder_;
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in:\n" << text;
}

TEST_F(Nonfinite, TheFirstLayerWhoseOutputIsNotFiniteIsNamed) {
  struct Case {
    const char* tensor;
    float value;
    const char* where;
    size_t begin = 0;
  };
  const std::string good = text("model/model.safetensors");
  for (const Case& c : {Case{"model.embed_tokens.weight", nan, "embedding output", 32},
                        Case{"model.layers.0.self_attn.v_proj.weight", inf, "output of model.layers.0"},
                        Case{"model.layers.1.input_layernorm.weight", nan, "output of model.layers.1"},
                        Case{"model.layers.2.mlp.down_proj.weight", -inf, "output of model.layers.2"},
                        Case{"model.norm.weight", nan, "logits"}, Case{"lm_head.weight", nan, "logits"}}) {
    SCOPED_TRACE(c.tensor);
    write_file_atomic(folder_.path("model/model.safetensors"), good);
    spoil_model(c.tensor, c.value, c.begin, 32);
    std::string said[2], written[2];
    for (const int ranks : {1, 2}) {
      said[ranks - 1] = error_of([&] { run_on(ranks, config("out")); });
      written[ranks - 1] = text("out/nonfinite-1.json");
    }
    expect_contains(said[0], std::string("step 1, ") + c.where);
    expect_contains(said[0], std::string("not finite already: ") + c.tensor);
    for (const char* part : {"\n  allowed: ", "\n  do this: the base holds it", "nonfinite-1.json"}) expect_contains(said[0], part);
    EXPECT_EQ(said[1], said[0]);
    EXPECT_EQ(written[1], written[0]);
    EXPECT_EQ(report("out", 1)["where"], c.where);
    EXPECT_EQ(report("out", 1)["tensors"], GoldenJson::array({c.tensor}));
    EXPECT_EQ(report("out", 1)["skipped"], false);
    EXPECT_FALSE(file_exists(folder_.path("out/train.jsonl")) && !log("out").empty());
  }
}

// 4-bit codes are always finite, their scales are not.
TEST_F(Nonfinite, TheScaleOfA4BitWeightIsNamed) {
  spoil_model("model.layers.1.mlp.up_proj.weight", inf, 70);
  const std::string said = error_of([&] { run_on(1, config("out", "qlora")); });
  expect_contains(said, "step 1, output of model.layers.1");
  expect_contains(said, "model.layers.1.mlp.up_proj.weight.");
}

TEST_F(Nonfinite, TheRowAndAllRowsOfTheStepAreWritten) {
  spoil_row_13();
  TrainConfig c = config("out");
  c.shuffle = false;
  const std::string said = error_of([&] { run_on(2, c); });
  expect_contains(said, "step 4, embedding output: the loss is NaN, first in row 13 (from 0), token 3");
  const GoldenJson r = report("out", 4);
  EXPECT_EQ(r["row"], 13);
  EXPECT_EQ(r["token"], 3);
  EXPECT_EQ(r["micro_batch"], 1);
  EXPECT_EQ(r["step"], 4);
  EXPECT_EQ(r["epoch"], 0);
  EXPECT_EQ(r["window"], 3);
  EXPECT_EQ(r["file"], folder_.path("rows.jsonl"));
  ASSERT_EQ(r["micro_batches"].size(), 4u);
  for (int m = 0; m < 4; ++m) {
    EXPECT_EQ(r["micro_batches"][size_t(m)]["rows"], GoldenJson::array({12 + m}));
    EXPECT_EQ(r["micro_batches"][size_t(m)]["loss"] == "NaN", m == 1) << m;
  }
  EXPECT_EQ(log("out").size(), 3u);
}

// A of zeros gives an output of zero whatever B is, and a gradient of A that is beyond fp32.
TEST_F(Nonfinite, WithFiniteOutputsTheFirstGradientIsNamed) {
  TrainConfig c = config("first");
  c.max_steps = 1;
  run_on(1, c);
  change(folder_.path("first/adapter_model.safetensors"), [](Values& values) {
    for (auto& [name, v] : values)
      std::fill(v.begin(), v.end(), name == "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight" ? 3e38f : 0.f);
  });
  GoldenJson peft = GoldenJson::parse(text("first/adapter_config.json"));
  peft["lora_alpha"] = 1e12;
  write_file_atomic(folder_.path("first/adapter_config.json"), peft.dump());
  c.adapter_init = folder_.path("first");
  c.output_dir = folder_.path("second");
  std::string said[2];
  for (const int ranks : {1, 2}) said[ranks - 1] = error_of([&] { run_on(ranks, c); });
  expect_contains(said[0], "step 1, gradient of model.layers.1.mlp.up_proj.lora_A.weight: a gradient is not finite");
  EXPECT_EQ(said[1], said[0]);
}

// Steps so large that fp32 cannot hold what comes of them.
TEST_F(Nonfinite, AStepThatExplodesIsNotSaved) {
  for (const double lr : {1e25, 3.9e38}) {
    const std::string output = lr < 1e30 ? "large" : "larger";
    TrainConfig c = config(output, "full");
    c.lr = lr;
    c.lr_scheduler = "constant", c.warmup_ratio = 0;
    const std::string said = error_of([&] { run_on(2, c); });
    expect_contains(said, "step 2, ");
    expect_contains(said, "a lower --lr (now ");
    EXPECT_EQ(log(output).size(), 1u);
    EXPECT_FALSE(file_exists(folder_.path(output + "/model.safetensors")));
  }
  TrainConfig c = config("full", "full");
  c.lr = 3.9e38, c.max_steps = 1;
  c.lr_scheduler = "constant", c.warmup_ratio = 0;
  const std::string said = error_of([&] { run_on(2, c); });
  expect_contains(said, "after step 1: not finite: model.embed_tokens.weight, model.layers.0.");
  EXPECT_FALSE(file_exists(folder_.path("full/model.safetensors")));
}

class Skipped : public Nonfinite {
 protected:
  Skipped() { spoil_row_13(); }
  TrainConfig skipping(const std::string& output) const {
    TrainConfig c = config(output);
    c.max_skipped_steps = 2;
    c.save_steps = 1;
    return c;
  }
  static std::vector<int64_t> skipped_steps(const std::vector<GoldenJson>& log) {
    std::vector<int64_t> out;
    for (const GoldenJson& line : log)
      if (line.value("skipped", false)) out.push_back(line["step"]);
    return out;
  }
};

// Two epochs of four steps: row 13 comes twice.
TEST_F(Skipped, StepChangesNothingOnAnyNumberOfRanks) {
  run_on(1, skipping("one"));
  const auto lines = log("one");
  const auto steps = skipped_steps(lines);
  ASSERT_EQ(steps.size(), 2u);
  ASSERT_EQ(lines.size(), 8u);
  for (const int64_t step : steps) {
    const GoldenJson& line = lines[size_t(step - 1)];
    EXPECT_TRUE(line["loss"].is_null());
    expect_contains(line["reason"], "embedding output: the loss is NaN, first in row 13 (from 0), token 3");
    EXPECT_EQ(report("one", step)["skipped"], true);
    const std::string before = "one/checkpoint-" + std::to_string(step - 1), after = "one/checkpoint-" + std::to_string(step);
    for (const char* file : {"/adapter_model.safetensors", "/optimizer.safetensors"})
      EXPECT_TRUE(step == 1 || hash(before + file) == hash(after + file)) << step << file;
  }
  EXPECT_NE(hash("one/checkpoint-8/adapter_model.safetensors"),
            hash("one/checkpoint-" + std::to_string(steps[0]) + "/adapter_model.safetensors"));
  for (const int ranks : {2, 4}) {
    const std::string many = "many" + std::to_string(ranks);
    run_on(ranks, skipping(many));
    EXPECT_EQ(log(many), lines);
    EXPECT_EQ(hash(many + "/adapter_model.safetensors"), hash("one/adapter_model.safetensors"));
    for (const int64_t step : steps) EXPECT_EQ(report(many, step), report("one", step));
  }
}

TEST_F(Skipped, StepsAreCountedOverAResume) {
  run_on(1, skipping("whole"));
  const auto steps = skipped_steps(log("whole"));
  ASSERT_EQ(steps.size(), 2u);
  for (const int64_t after : {steps[0], steps[1] - 1}) {
    const std::string output = "resumed" + std::to_string(after);
    TrainConfig c = skipping(output);
    c.resume_from_checkpoint = folder_.path("whole/checkpoint-") + std::to_string(after);
    c.save_steps = 0;
    c.max_skipped_steps = 1;
    const std::string said = error_of([&] { run_on(2, c); });
    expect_contains(said, "step " + std::to_string(steps[1]) + ", embedding output");
    expect_contains(said, "--max_skipped_steps 1, and 1 were skipped");
    c.max_skipped_steps = 2;
    run_on(2, c);
    EXPECT_EQ(hash(output + "/adapter_model.safetensors"), hash("whole/adapter_model.safetensors"));
    const auto lines = log(output), all = log("whole");
    EXPECT_EQ(lines, std::vector<GoldenJson>(all.begin() + after, all.end()));
  }
}

TEST_F(Skipped, ARunThatStopsKeepsWhatItHasLearned) {
  run_on(1, skipping("whole"));
  const auto steps = skipped_steps(log("whole"));
  ASSERT_EQ(steps.size(), 2u);
  TrainConfig c = skipping("stopped");
  c.save_steps = 0;
  c.max_skipped_steps = 1;
  expect_contains(error_of([&] { run_on(2, c); }), "step " + std::to_string(steps[1]));
  EXPECT_TRUE(file_exists(folder_.path("stopped/checkpoint-") + std::to_string(steps[1] - 1) + "/checkpoint.json"));
  c.max_skipped_steps = 2;
  c.resume_from_checkpoint = "true";
  run_on(1, c);
  EXPECT_EQ(hash("stopped/adapter_model.safetensors"), hash("whole/adapter_model.safetensors"));
  EXPECT_EQ(log("stopped"), log("whole"));
}

TEST_F(Skipped, MoreThanAllowedStopsTheRun) {
  TrainConfig c = skipping("out");
  c.max_skipped_steps = 1;
  expect_contains(error_of([&] { run_on(1, c); }), "--max_skipped_steps 1, and 1 were skipped");
}

// AdamW's first update moves every value by lr, the second by less: the first after a skipped step is the first.
TEST_F(Skipped, StepIsNoneForTheOptimizer) {
  TrainConfig c = skipping("out");
  c.shuffle = false;
  c.init_lora_weights = "true";
  c.lr_scheduler = "constant", c.warmup_ratio = 0;
  c.max_steps = 2;
  std::istringstream rows(text("rows.jsonl"));
  std::string first, others;
  for (std::string line; std::getline(rows, line);) (line.find(" 63") == std::string::npos ? others : first) += line + "\n";
  write_file_atomic(folder_.path("rows.jsonl"), first + others);
  run_on(1, c);
  EXPECT_EQ(skipped_steps(log("out")), std::vector<int64_t>{1});
  const TensorFiles files = TensorFiles::open(folder_.path("out/adapter_model.safetensors"));
  const StoredTensor& b = files.get("base_model.model.model.layers.2.mlp.down_proj.lora_B.weight");
  std::vector<float> values(size_t(b.size()));
  std::memcpy(values.data(), b.data, b.bytes);
  for (const float v : values) EXPECT_NEAR(std::fabs(v), c.lr, c.lr * 1e-3);
}

TEST_F(Skipped, ReportsOfALaterStepBelongToAnotherRun) {
  run_on(1, skipping("out"));
  for (const char* name : {"out/nonfinite-99.json", "out/nonfinite-x.json"}) write_file_atomic(folder_.path(name), "{}");
  TrainConfig c = skipping("out");
  c.resume_from_checkpoint = folder_.path("out/checkpoint-8");
  run_on(1, c);
  EXPECT_FALSE(file_exists(folder_.path("out/nonfinite-99.json")));
  EXPECT_TRUE(file_exists(folder_.path("out/nonfinite-x.json")));
  for (const int64_t step : skipped_steps(log("out"))) EXPECT_EQ(report("out", step)["step"], step);
}

TEST(FirstNonfinite, OfEveryDtype) {
  std::vector<float> f(9, 3.4e38f);
  const auto of = [](auto& v, Dtype dtype) { return first_nonfinite({v.data(), dtype, {int64_t(v.size())}}); };
  EXPECT_EQ(of(f, Dtype::f32), -1);
  f[7] = -inf;
  EXPECT_EQ(of(f, Dtype::f32), 7);
  f[2] = nan;
  EXPECT_EQ(of(f, Dtype::f32), 2);
  std::vector<Bf16> b(5, Bf16(-3.3e38f));
  EXPECT_EQ(of(b, Dtype::bf16), -1);
  b[4] = Bf16(nan);
  EXPECT_EQ(of(b, Dtype::bf16), 4);
  std::vector<F16> h(5, F16(65504));
  EXPECT_EQ(of(h, Dtype::f16), -1);
  h[1] = F16(1e9f);
  EXPECT_EQ(of(h, Dtype::f16), 1);
  std::vector<double> d(3, 1e308);
  EXPECT_EQ(of(d, Dtype::f64), -1);
  d[0] = double(inf);
  EXPECT_EQ(of(d, Dtype::f64), 0);
  std::vector<uint8_t> u(3, 0xff);
  EXPECT_EQ(of(u, Dtype::u8), -1);
}

}  // namespace
}  // namespace tessera
