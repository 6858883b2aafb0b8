// Adapters against PEFT and bitsandbytes: logits, loss, every adapter gradient; folders read and written back.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "io/file.h"
#include "train/output.h"
#include "train/train_test.h"

namespace tessera {
namespace {

const std::string adapters = "golden/train/adapters/", quantized = "golden/train/qlora/";

// Golden paths are relative to golden/; "../models/stories260k" is beside it.
std::string base_folder(const GoldenJson& facts) { return shared("golden/" + facts.at("base").get<std::string>()); }

double largest(const std::vector<double>& v) {
  double m = 0;
  for (const double x : v) m = std::max(m, std::abs(x));
  return m;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double m = a.size() == b.size() ? 0 : 1e30;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) m = std::max(m, std::abs(a[i] - b[i]));
  return m;
}

struct Tolerance {
  double loss, logits, gradients;  // loss relative; logits absolute; gradients relative to the tensor's largest value
};

void expect_case(const std::string& folder, const GoldenJson& facts, ModelRequest request, Tolerance tolerance,
                 const char* device = "cpu") {
  request.folder = base_folder(facts);
  TestModel m(request, device);
  const GoldenFile batch_file("golden/train/batches.safetensors"), expected(folder + "/expected.safetensors");
  const Batch b = golden_batch(batch_file);
  const auto mask = batch_file.doubles("attention_mask");
  EXPECT_LT(largest_difference(real_rows(doubles(m.model.pass.logits(b)), mask), real_rows(expected.doubles("logits"), mask)),
            tolerance.logits);
  m.model.pass.train(b, 1 / float(b.target_tokens));
  const double loss = m.model.pass.take_losses().at(0) / double(b.target_tokens);
  EXPECT_NEAR(loss, facts.at("loss").get<double>(), tolerance.loss * loss);
  size_t compared = 0;
  const auto mine = m.gradients();
  for (const std::string& name : expected.names()) {
    if (name.rfind("grad:", 0) != 0) continue;
    const auto golden = expected.doubles(name);
    std::string key = name.substr(5);
    for (const auto& [from, to] : {std::pair{"base_model.model.", ""}, {"lora_AB.0", "lora_A"}, {"lora_AB.1", "lora_B"}})
      if (const size_t at = key.find(from); at != std::string::npos) key.replace(at, std::strlen(from), to);
    ASSERT_TRUE(mine.count(key)) << key;
    EXPECT_LT(largest_difference(mine.at(key), golden), tolerance.gradients * largest(golden)) << key;
    ++compared;
  }
  EXPECT_EQ(compared, mine.size());
}

class PeftAdapter : public testing::TestWithParam<const char*> {};

TEST_P(PeftAdapter, OutputsAndGradients) {
  NEEDS_SHARED();
  ModelRequest request;
  request.adapter = shared(adapters + GetParam());
  expect_case(adapters + GetParam(), golden_json(adapters + GetParam() + "/case.json"), request, {1e-5, 1e-4, 5e-5});
}

// Read, loaded into the model, written again: the same keys, shapes, dtypes, values, and the same configuration.
TEST_P(PeftAdapter, WrittenBackEqual) {
  NEEDS_SHARED();
  const std::string folder = adapters + GetParam();
  ModelRequest request = dense_request(base_folder(golden_json(folder + "/case.json")));
  request.adapter = shared(folder);
  TestModel m(request);
  const TestFolder out;
  write_adapter(masters_of(m.model), out.path(), false);
  const GoldenFile golden(folder + "/adapter_model.safetensors");
  const TensorFiles mine = TensorFiles::open(out.path("adapter_model.safetensors"));
  ASSERT_EQ(mine.all().size(), golden.names().size());
  for (const auto& [name, tensor] : mine.all()) {
    EXPECT_EQ(tensor.dtype_name, golden.dtype(name));
    EXPECT_EQ(tensor.shape, golden.sizes(name));
    EXPECT_EQ(
        std::vector<uint8_t>(reinterpret_cast<const uint8_t*>(tensor.data), reinterpret_cast<const uint8_t*>(tensor.data) + tensor.bytes),
        golden.bytes(name));
  }
  GoldenJson config = GoldenJson::parse(read_file(out.path("adapter_config.json"))), wanted = golden_json(folder + "/adapter_config.json");
  for (GoldenJson* c : {&config, &wanted}) {
    c->erase("peft_version");
    if (c->at("target_modules").is_array()) {
      auto list = c->at("target_modules").get<std::vector<std::string>>();
      std::sort(list.begin(), list.end());
      (*c)["target_modules"] = list;
    }
  }
  EXPECT_EQ(nlohmann::json(config), nlohmann::json(wanted));
}

INSTANTIATE_TEST_SUITE_P(Golden, PeftAdapter,
                         testing::Values("lora_all_linear", "lora_qv", "regex_targets", "patterns", "exclude_modules",
                                         "layers_to_transform", "rslora", "init_gaussian"));

class QloraGolden : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Devices, QloraGolden, testing::ValuesIn(f32_devices()), [](const auto& info) { return std::string(info.param); });

TEST_P(QloraGolden, PeftOnNf4WithDoubleQuantization) {
  NEEDS_SHARED();
  ModelRequest request;
  request.adapter = shared(quantized + "qlora_nf4_fp32");
  request.quantized = true;
  expect_case(quantized + "qlora_nf4_fp32", golden_json(quantized + "qlora_nf4_fp32/case.json"), request, {1e-5, 2e-5, 1e-5}, GetParam());
}

// bf16 base and activations; adapters fp32. Logits and loss near; gradients within 8 % of a tensor's norm.
TEST_P(QloraGolden, Bfloat16) {
  NEEDS_SHARED();
  const std::string folder = quantized + "qlora_nf4_bf16_autocast";
  const GoldenJson facts = golden_json(folder + "/case.json");
  ModelRequest request = dense_request(base_folder(facts), Dtype::bf16);
  request.adapter = shared(folder);
  request.quantized = true;
  TestModel m(request, GetParam());
  const GoldenFile batch_file("golden/train/batches.safetensors"), expected(folder + "/expected.safetensors");
  const Batch b = golden_batch(batch_file);
  const auto mask = batch_file.doubles("attention_mask");
  EXPECT_LT(largest_difference(real_rows(doubles(m.model.pass.logits(b)), mask), real_rows(expected.doubles("logits"), mask)), 0.15);
  m.model.pass.train(b, 1 / float(b.target_tokens));
  const double loss = m.model.pass.take_losses().at(0) / double(b.target_tokens);
  EXPECT_NEAR(loss, facts.at("loss").get<double>(), 1e-2 * loss);
  for (const auto& [name, gradient] : m.gradients())
    EXPECT_LT(relative_error(gradient, expected.doubles("grad:base_model.model." + name)), 0.08) << name;
}

// fsdp_qlora's own LoRA module and its file names.
TEST_P(QloraGolden, FsdpQloraFile) {
  NEEDS_SHARED();
  const std::string folder = quantized + "fsdp_qlora_custom_qlora";
  const GoldenJson facts = golden_json(folder + "/case.json");
  const TestFolder adapter;
  PeftConfig peft;
  peft.rank = facts.at("config").at("r").get<int64_t>();
  peft.alpha = facts.at("config").at("lora_alpha").get<double>();
  peft.target_modules = facts.at("config").at("target_modules").get<std::vector<std::string>>();
  import_fsdp_qlora_adapter(shared(folder + "/model_state_dict.safetensors"), peft, adapter.path());
  ModelRequest request;
  request.adapter = adapter.path();
  request.quantized = true;
  expect_case(folder, facts, request, {1e-5, 2e-5, 1e-5}, GetParam());
  request.folder = base_folder(facts);
  TestModel m(request, GetParam());
  const TestFolder out;
  write_adapter(masters_of(m.model), out.path(), true);
  const GoldenFile golden(folder + "/model_state_dict.safetensors");
  const TensorFiles mine = TensorFiles::open(out.path("model_state_dict.safetensors"));
  ASSERT_EQ(mine.all().size(), golden.names().size());
  for (const auto& [name, tensor] : mine.all()) EXPECT_EQ(tensor.shape, golden.sizes(name)) << name;
}

// What this program does not build is refused by its name.
TEST(UnbuiltAdapters, AreRefusedByName) {
  NEEDS_SHARED();
  for (const auto& [name, key] : {std::pair{"dora", "use_dora"},
                                  {"bias_lora_only", "bias"},
                                  {"lora_bias", "lora_bias"},
                                  {"modules_to_save_tied", "modules_to_save"}}) {
    ModelRequest request = dense_request(base_folder(golden_json(adapters + name + "/case.json")));
    request.adapter = shared(adapters + name);
    try {
      TestModel m(request);
      ADD_FAILURE() << name << " was loaded";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(key), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace tessera
