// Forty steps of training against transformers.Trainer: loss, gradient norm and rate at every step, final weights, optimizer moments.
#include <cmath>
#include <sstream>
#include <tuple>

#include "io/file.h"
#include "io/safetensors.h"
#include "train/checkpoint.h"
#include "train/loop.h"
#include "train/train_test.h"

namespace tessera {
namespace {

struct Curve {
  const char* name;
  const char* train_type;
  const char* precision;
  double loss, norm, final;  // relative tolerances
};

TrainConfig curve_config(const Curve& curve, const GoldenJson& facts, const std::string& output) {
  const auto& run = facts.at("run");
  TrainConfig c;
  c.model = shared("models/stories260k");
  c.dataset = shared("golden/train/curves/data.jsonl");
  c.defaults = "trl";
  c.shuffle = false;
  c.train_type = curve.train_type;
  c.precision = curve.precision;
  if (c.train_type != "full") c.adapter_init = shared("golden/train/curves/initial_adapter");
  c.lr = run.at("lr").get<double>();
  c.weight_decay = run.at("weight_decay").get<double>();
  c.lr_scheduler = "cosine";
  c.warmup_steps = run.at("warmup").get<double>(), c.warmup_ratio = -1;
  c.max_grad_norm = run.at("clip").get<double>();
  c.batch_size = run.at("batch").get<int64_t>();
  c.gradient_accumulation_steps = run.value("accumulation", int64_t(1));
  c.max_steps = run.at("steps").get<int64_t>();
  c.save_steps = c.max_steps;
  c.threads = 1;
  c.logging_steps = c.max_steps;
  c.output_dir = output;
  return c;
}

// Those of steps; a save has a line of its own.
std::vector<GoldenJson> log_lines(const std::string& folder) {
  std::vector<GoldenJson> out;
  std::istringstream lines(read_file(folder + "/train.jsonl"));
  for (std::string line; std::getline(lines, line);)
    if (GoldenJson step = GoldenJson::parse(line); step.contains("loss")) out.push_back(std::move(step));
  return out;
}

std::vector<double> values(const TensorFiles& files, const std::string& name) {
  const StoredTensor& t = files.get(name);
  std::vector<float> v(size_t(t.size()));
  read_elements({v.data(), Dtype::f32, {t.size()}, nullptr}, t, 0, t.size());
  return doubles(v);
}

// The model folder a QLoRA run starts from: its own dense tensors, and the 4-bit ones that bitsandbytes made for that run.
std::string quantized_folder(const std::string& base, const TestFolder& folder) {
  const TensorFiles dense = TensorFiles::open(shared("models/stories260k")), codes = TensorFiles::open(shared("golden/" + base));
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, t] : codes.all()) tensors.push_back({name, t.dtype, t.shape, t.data});
  for (const auto& [name, t] : dense.all())
    if (!codes.find(name)) tensors.push_back({name, t.dtype, t.shape, t.data});
  make_folder(folder.path("model"));
  write_safetensors(folder.path("model/model.safetensors"), tensors, {});
  GoldenJson config = golden_json("models/stories260k/config.json");
  config["quantization_config"] = {
      {"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "nf4"}, {"bnb_4bit_use_double_quant", true}};
  write_file_atomic(folder.path("model/config.json"), config.dump());
  return folder.path("model");
}

void expect_steps(const std::string& output, const TrainConfig& c, const Curve& curve, const GoldenJson& facts) {
  const auto log = log_lines(output);
  ASSERT_EQ(log.size(), size_t(c.max_steps));
  for (size_t i = 0; i < log.size(); ++i) {
    const auto& wanted = facts.at("steps").at(i);
    const auto relative = [&](const char* key) { return std::abs(log[i].at(key).get<double>() / wanted.at(key).get<double>() - 1); };
    EXPECT_LT(relative("loss"), curve.loss) << "step " << i + 1;
    EXPECT_LT(relative("grad_norm"), curve.norm) << "step " << i + 1;
    EXPECT_NEAR(log[i].at("learning_rate").get<double>(), wanted.at("learning_rate").get<double>(), 1e-12 * c.lr);
    EXPECT_EQ(log[i].at("target_tokens"), wanted.at("target_tokens"));
    EXPECT_EQ(log[i].at("tokens"), wanted.at("input_tokens"));
  }
}

class CurveTest : public testing::TestWithParam<Curve> {};

TEST_P(CurveTest, FollowsTrainer) {
  NEEDS_SHARED();
  const Curve& curve = GetParam();
  const std::string golden = std::string("golden/train/curves/") + curve.name;
  const GoldenJson facts = golden_json(golden + ".json");
  const TestFolder out;
  TrainConfig c = curve_config(curve, facts, out.path());
  const TestFolder base;
  if (facts.contains("quantized_base")) c.model = quantized_folder(facts.at("quantized_base").get<std::string>(), base);
  train(c, *make_single_comm());

  ASSERT_EQ(size_t(c.max_steps), facts.at("steps").size());
  expect_steps(out.path(), c, curve, facts);

  const bool full = c.train_type == std::string("full");
  const TensorFiles final = TensorFiles::open(out.path(full ? "model.safetensors" : "adapter_model.safetensors"));
  const GoldenFile wanted(golden + ".final.safetensors");
  std::vector<double> all, all_wanted;
  for (const std::string& name : wanted.names()) {
    for (const double v : values(final, name)) all.push_back(v);
    for (const double v : wanted.doubles(name)) all_wanted.push_back(v);
  }
  EXPECT_LT(relative_error(all, all_wanted), curve.final);
  if (!file_exists(shared(golden + ".optimizer.safetensors"))) return;
  const GoldenFile moments(golden + ".optimizer.safetensors");
  const TensorFiles mine = TensorFiles::open(out.path("checkpoint-" + std::to_string(c.max_steps) + "/optimizer.safetensors"));
  for (const std::string& name : moments.names()) {
    std::string key = name;
    if (const size_t at = key.find("base_model.model."); at != std::string::npos) key.erase(at, 17);
    const auto a = values(mine, key), b = moments.doubles(name);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < b.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i])), largest = std::max(largest, std::abs(b[i]));
    EXPECT_LT(worst, 1e-4 * largest) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, CurveTest,
                         testing::Values(Curve{"full_fp32", "full", "fp32", 1e-5, 1e-4, 1e-5},
                                         Curve{"lora_fp32", "lora", "fp32", 1e-5, 1e-4, 1e-5},
                                         Curve{"lora_accumulation4", "lora", "fp32", 1e-5, 1e-4, 1e-5},
                                         Curve{"lora_uneven_epochs", "lora", "fp32", 1e-5, 1e-4, 1e-5},
                                         Curve{"qlora_nf4_fp32", "qlora", "fp32", 1e-5, 1e-4, 1e-5},
                                         Curve{"lora_bf16_autocast", "lora", "bf16", 1.5e-2, 5e-2, 5e-2},
                                         Curve{"qlora_nf4_bf16", "qlora", "bf16", 1.5e-2, 5e-2, 5e-2}),
                         [](const auto& info) { return std::string(info.param.name); });

// The first five steps on every device: the rate of none of them depends on how many follow.
class CurveOnDevices : public testing::TestWithParam<std::tuple<const char*, Curve>> {};

TEST_P(CurveOnDevices, FollowsTrainer) {
  NEEDS_SHARED();
  const auto& [device, curve] = GetParam();
  const GoldenJson facts = golden_json(std::string("golden/train/curves/") + curve.name + ".json");
  const TestFolder out, base;
  TrainConfig c = curve_config(curve, facts, out.path());
  c.model = quantized_folder(facts.at("quantized_base").get<std::string>(), base);
  c.max_steps = c.save_steps = 5;
  c.device = device;
  train(c, *make_single_comm(), {}, {}, [](std::string_view name, int threads) { return make_test_backend(name, threads); });
  expect_steps(out.path(), c, curve, facts);
}

INSTANTIATE_TEST_SUITE_P(Golden, CurveOnDevices,
                         testing::Combine(testing::ValuesIn(f32_devices()),
                                          testing::Values(Curve{"qlora_nf4_fp32", "qlora", "fp32", 1e-5, 1e-4, 0},
                                                          Curve{"qlora_nf4_bf16", "qlora", "bf16", 1.5e-2, 5e-2, 0})),
                         [](const auto& info) { return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name; });

}  // namespace
}  // namespace tessera
