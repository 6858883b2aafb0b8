#include "models/peft.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "io/json.h"
#include "testing/golden.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

const std::string adapters = "golden/train/adapters/";
const char* const built[] = {"lora_all_linear",     "lora_qv", "regex_targets", "patterns", "exclude_modules",
                             "layers_to_transform", "rslora",  "init_gaussian"};

void expect_named(const std::string& error, const std::vector<std::string>& names) {
  for (const std::string& name : names) EXPECT_NE(error.find(name), std::string::npos) << name << " in " << error;
}

std::vector<std::string> llama_modules(int layers) {
  std::vector<std::string> out;
  for (int l = 0; l < layers; ++l) {
    for (const char* name : {"q", "k", "v", "o"}) out.push_back(str("model.layers.", l, ".self_attn.", name, "_proj"));
    for (const char* name : {"gate", "up", "down"}) out.push_back(str("model.layers.", l, ".mlp.", name, "_proj"));
  }
  out.emplace_back("lm_head");
  return out;
}

std::vector<std::string> paths(const PeftConfig& c, int layers = 2) {
  std::vector<std::string> out;
  for (const auto& t : targeted_modules(c, llama_modules(layers))) out.push_back(t.path);
  return out;
}

PeftConfig targets(const std::vector<std::string>& names) {
  PeftConfig c;
  c.target_modules = names;
  return c;
}

// The config that `text` is read as.
PeftConfig config_of(const TestFolder& folder, const std::string& text) {
  write_file_atomic(folder / "adapter_config.json", text);
  return read_peft_config(folder.path());
}
std::string config_error(const TestFolder& folder, const std::string& keys) {
  return error_of([&] { config_of(folder, R"({"peft_type": "LORA", )" + keys + "}"); });
}

Json case_of(const std::string& name) { return parse_json(shared_text(adapters + name + "/case.json"), name); }

// Module paths of the base model of a case, from its tensors.
std::vector<std::string> base_modules(const Json& facts) {
  std::vector<std::string> out;
  const TensorFiles files = TensorFiles::open(shared("golden/" + facts["base"].get<std::string>()));
  for (const auto& [name, tensor] : files.all()) {
    const bool linear = ends_with(name, "_proj.weight") || name == "lm_head.weight";
    if (linear && tensor.shape.size() == 2) out.push_back(name.substr(0, name.size() - std::string(".weight").size()));
  }
  return out;
}

TEST(PeftTargets, AsPeftResolvesThem) {
  NEEDS_SHARED();
  for (const std::string name : built) {
    const Json facts = case_of(name);
    const PeftConfig config = read_peft_config(shared(adapters + name));
    const auto found = targeted_modules(config, base_modules(facts));
    EXPECT_EQ(found.size(), facts["modules"].size()) << name;
    for (const auto& t : found) {
      ASSERT_TRUE(facts["modules"].contains(t.path)) << name << " " << t.path;
      const Json& expected = facts["modules"][t.path];
      EXPECT_EQ(t.rank, expected["r"].get<int64_t>()) << name << " " << t.path;
      EXPECT_DOUBLE_EQ(t.scaling, expected["scaling"].get<double>()) << name << " " << t.path;
    }
  }
}

// The same from the arguments of LoraConfig instead of the saved list.
TEST(PeftTargets, AllLinearAndExclusions) {
  NEEDS_SHARED();
  for (const std::string name : {"lora_all_linear", "exclude_modules"}) {
    const Json facts = case_of(name);
    PeftConfig c = targets({"all-linear"});
    if (facts["config"].contains("exclude_modules")) c.exclude_modules = facts["config"]["exclude_modules"].get<std::vector<std::string>>();
    EXPECT_EQ(targeted_modules(c, base_modules(facts)).size(), facts["modules"].size()) << name;
  }
}

TEST(PeftTargets, NamesAreWholeParts) {
  EXPECT_EQ(paths(targets({"q_proj"})), (std::vector<std::string>{"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}));
  EXPECT_EQ(paths(targets({"layers.1.mlp.up_proj", "lm_head"})), (std::vector<std::string>{"model.layers.1.mlp.up_proj", "lm_head"}));
  EXPECT_EQ(paths(targets({"ALL-Linear"})).size(), 14u);
  EXPECT_EQ(paths(targets({".*\\.1\\.mlp\\.(up|gate)_proj"})).size(), 2u);
  EXPECT_EQ(paths(targets({"^(?!.*mlp).*(?:q|k)_proj$"})).size(), 4u);
}

TEST(PeftTargets, LayersToTransform) {
  PeftConfig c = targets({"q_proj", "model.layers.0.mlp.up_proj"});
  c.layers_to_transform = {1};
  EXPECT_EQ(paths(c), (std::vector<std::string>{"model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"}));
  c.layers_pattern = {"h", "layers"};
  EXPECT_EQ(paths(c).size(), 2u);
  c.layers_pattern = {"blocks"};
  expect_named(error_of([&] { paths(c); }), {"layers_to_transform", "layer 1"});
  c.layers_pattern = {};
  c.layers_to_transform = {1, 2};
  expect_named(error_of([&] { paths(c); }), {"layers_to_transform", "layer 2", "0 to 1"});
  c.layers_to_transform = {};
  c.layers_pattern = {"layers"};
  expect_named(error_of([&] { paths(c); }), {"layers_pattern", "layers_to_transform"});
}

TEST(PeftTargets, MistakesAreNamed) {
  expect_named(error_of([] { paths(targets({"q_proj", "v_porj"})); }), {"target_modules", "v_porj", "write v_proj", "gate_proj"});
  expect_named(error_of([] { paths(targets({"embed_tokens"})); }), {"target_modules", "embed_tokens", "q_proj"});
  expect_named(error_of([] { paths(targets({"proj"})); }), {"proj is no linear layer"});
  expect_named(error_of([] { paths(targets({})); }), {"target_modules", "is empty", "q_proj"});
  expect_named(error_of([] { paths(targets({"q_proj$|v_proj"})); }), {"target_modules", "q_proj$|v_proj", "whole paths"});
  expect_named(error_of([] { paths(targets({"((q)_proj"})); }), {"target_modules", "((q)_proj", "a regular expression"});
  PeftConfig c = targets({"q_proj"});
  c.exclude_modules = std::vector<std::string>{"self_attn.q_proj"};
  expect_named(error_of([&] { paths(c); }), {"target_modules", "exclude_modules: self_attn.q_proj"});
}

TEST(PeftTargets, PatternsMatchFromADot) {
  PeftConfig c = targets({"q_proj", "up_proj"});
  c.rank_pattern = {{"0.self_attn.q_proj", 2}, {"q_proj", 3}, {"p_proj", 5}, {"^model.layers.1.mlp.*", 6}};
  c.alpha_pattern = {{"up_proj|q_proj", 12}};
  c.use_rslora = true;
  const auto found = targeted_modules(c, llama_modules(2));
  ASSERT_EQ(found.size(), 4u);
  const int64_t ranks[] = {2, 8, 3, 6};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(found[i].rank, ranks[i]) << found[i].path;
    EXPECT_DOUBLE_EQ(found[i].scaling, 12 / std::sqrt(double(ranks[i])));
  }
}

TEST(PeftConfigFile, IsWrittenAsPeftWritesIt) {
  NEEDS_SHARED();
  for (const std::string name : built) {
    EXPECT_EQ(peft_config_text(read_peft_config(shared(adapters + name))), shared_text(adapters + name + "/adapter_config.json")) << name;
  }
}

TEST(PeftConfigFile, WholeNumbersAndStrings) {
  PeftConfig c = targets({"q_.*"});
  c.alpha = 2.5;
  c.dropout = 0.05;
  c.init_lora_weights = "false";
  c.task_type = "";
  c.base_model_name_or_path = "modèle";
  const Json v = parse_json(peft_config_text(c), "config");
  EXPECT_EQ(v["lora_alpha"].dump(), "2.5");
  EXPECT_EQ(v["lora_dropout"].dump(), "0.05");
  EXPECT_EQ(v["target_modules"].dump(), "\"q_.*\"");
  EXPECT_EQ(v["init_lora_weights"].dump(), "false");
  EXPECT_TRUE(v["task_type"].is_null());
  EXPECT_EQ(v["base_model_name_or_path"], "modèle");
  EXPECT_EQ(v["r"].dump(), "8");
}

TEST(PeftConfigFile, DefaultsAndOldFiles) {
  const TestFolder folder;
  const PeftConfig c = config_of(folder, R"({"peft_type": "LORA", "from_the_future": [1], "lora_alpha": 32.0, "bias": "none",
    "modules_to_save": [], "loftq_config": null, "layers_to_transform": 3, "layers_pattern": "h", "target_modules": "all-linear"})");
  EXPECT_EQ(c.rank, 8);
  EXPECT_EQ(c.alpha, 32);
  EXPECT_EQ(c.layers_to_transform, std::vector<int64_t>{3});
  EXPECT_EQ(c.layers_pattern, std::vector<std::string>{"h"});
  EXPECT_TRUE(c.target_modules.all_linear());
  EXPECT_EQ(peft_config_text(c).find("from_the_future"), std::string::npos);
  EXPECT_EQ(config_of(folder, R"({"peft_type": "LORA"})").target_modules.entries, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_TRUE(config_of(folder, R"({"peft_type": "LORA", "target_modules": "q_proj"})").target_modules.regex);
  EXPECT_FALSE(config_of(folder, R"({"peft_type": "LORA", "target_modules": ["q.*"]})").target_modules.regex);
}

TEST(PeftConfigFile, WhatIsNotBuiltIsRefusedByName) {
  const TestFolder folder;
  for (const char* keys :
       {R"("use_dora": true)", R"("lora_bias": true)", R"("bias": "all")", R"("modules_to_save": ["lm_head"])",
        R"("trainable_token_indices": [1])", R"("layer_replication": [[0, 4]])", R"("target_parameters": ["w"])",
        R"("alora_invocation_tokens": [1])", R"("fan_in_fan_out": true)", R"("use_qalora": true)", R"("megatron_config": {"a": 1})",
        R"("arrow_config": {"top_k": 3})", R"("use_bdlora": {"nblocks": 1})", R"("velora_config": {"scale": 1})",
        R"("kasa_config": {"beta": 1})", R"("monteclora_config": {"a": 1})", R"("ensure_weight_tying": true)",
        R"("init_lora_weights": "pissa_niter_4")", R"("init_lora_weights": "loftq")"}) {
    const std::string text = keys, key = text.substr(1, text.find('"', 1) - 1);
    expect_named(config_error(folder, keys), {folder / ("adapter_config.json: " + key), "not built yet"});
  }
}

TEST(PeftConfigFile, BadValuesAreRefusedByName) {
  const TestFolder folder;
  for (const char* keys :
       {R"("r": 0)", R"("r": -1)", R"("r": 1.5)", R"("r": "8")", R"("r": null)", R"("r": 1e300)", R"("lora_alpha": "16")",
        R"("lora_dropout": 1)", R"("lora_dropout": -0.1)", R"("target_modules": 3)", R"("target_modules": [3])", R"("rank_pattern": [1])",
        R"("rank_pattern": {"q": 0})", R"("alpha_pattern": {"q": "x"})", R"("use_rslora": 1)", R"("layers_to_transform": [-1])",
        R"("layers_to_transform": "1")", R"("init_lora_weights": 1)", R"("task_type": 1)"}) {
    const std::string text = keys, key = text.substr(1, text.find('"', 1) - 1);
    expect_named(config_error(folder, keys), {folder / ("adapter_config.json: " + key)});
  }
  expect_named(error_of([&] { config_of(folder, R"({"peft_type": "IA3"})"); }), {"adapter_config.json: peft_type", "IA3"});
  expect_named(error_of([&] { config_of(folder, R"({"r": 8})"); }), {"adapter_config.json", "peft_type"});
  expect_named(error_of([&] { config_of(folder, "[]"); }), {"adapter_config.json"});
  expect_named(error_of([&] { config_of(folder, R"({"peft_type": "LORA",)"); }), {"adapter_config.json, line 1"});
  expect_named(error_of([&] { read_peft_config(folder / "none"); }), {"none/adapter_config.json"});
}

TEST(PeftGolden, WhatIsNotBuiltIsRefusedByName) {
  NEEDS_SHARED();
  const std::pair<const char*, const char*> cases[] = {{"dora", "use_dora"},
                                                       {"dora_bias", "use_dora"},
                                                       {"bias_lora_only", "bias"},
                                                       {"lora_bias", "lora_bias"},
                                                       {"init_loftq", "init_lora_weights"},
                                                       {"init_olora", "init_lora_weights"},
                                                       {"init_pissa", "init_lora_weights"},
                                                       {"modules_to_save_tied", "modules_to_save"},
                                                       {"modules_to_save_untied", "modules_to_save"},
                                                       {"embedding", "embed_tokens"},
                                                       {"resized_vocabulary", "base_model.model.lm_head.weight"}};
  for (const auto& [name, key] : cases) {
    const std::string folder = shared(adapters + name);
    const std::string error = error_of([&] {
      targeted_modules(read_peft_config(folder), base_modules(case_of(name)));
      open_peft_tensors(folder);
    });
    expect_named(error, {key});
  }
}

TEST(PeftGolden, FoldersAreWrittenBackEqual) {
  NEEDS_SHARED();
  const TestFolder out;
  for (const std::string name : built) {
    const TensorFiles files = open_peft_tensors(shared(adapters + name));
    std::vector<TensorToWrite> tensors;
    for (const auto& [key, t] : files.all()) tensors.push_back({key, t.dtype, t.shape, t.data});
    write_peft_adapter(out / name, read_peft_config(shared(adapters + name)), tensors);
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors"})
      EXPECT_TRUE(read_file((out / name) + "/" + file) == shared_text(adapters + name + "/" + file)) << name << " " << file;
  }
}

TEST(PeftGolden, FsdpQloraFilesThereAndBack) {
  NEEDS_SHARED();
  const TestFolder out;
  const std::string folder = "golden/train/qlora/fsdp_qlora_custom_qlora/";
  const PeftConfig config = targets({"all-linear"});
  import_fsdp_qlora_adapter(shared(folder + "model_state_dict.safetensors"), config, out.path());
  const TensorFiles files = open_peft_tensors(out.path());
  const auto names = read_peft_config(out.path()).target_modules.entries;
  EXPECT_EQ(names, (std::vector<std::string>{"down_proj", "gate_proj", "k_proj", "q_proj", "up_proj", "v_proj"}));
  std::vector<TensorToWrite> tensors;
  for (const auto& [key, t] : files.all())
    tensors.push_back({key.substr(std::string("base_model.model.").size()), t.dtype, t.shape, t.data});
  write_fsdp_qlora_adapter(out / "back", tensors);
  EXPECT_TRUE(read_file(out / "back/model_state_dict.safetensors") == shared_text(folder + "model_state_dict.safetensors"));
  const std::string dora = shared("golden/train/qlora/fsdp_qlora_bnb_dora/model_state_dict.safetensors");
  expect_named(error_of([&] { import_fsdp_qlora_adapter(dora, config, out / "dora"); }), {dora, "DoRA"});
}

TEST(PeftNames, OfTheThreeProgramsMeanTheSame) {
  const std::string a = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", m = "model.layers.0.mlp.up_proj";
  EXPECT_EQ(peft_name(m + ".lora_A.weight"), a);
  EXPECT_EQ(peft_name(m + ".lora_AB.0.weight"), a);
  EXPECT_EQ(peft_name("base_model.model." + m + ".lora_A.default.weight"), a);
  EXPECT_EQ(peft_name(a), a);
  EXPECT_EQ(fsdp_qlora_name(a), m + ".lora_AB.0.weight");
  EXPECT_EQ(fsdp_qlora_name(m + ".lora_B.weight"), m + ".lora_AB.1.weight");
  for (const char* other : {"base_model.model.lm_head.weight", "lora_A.weight", "x.lora_magnitude_vector", "x.lora_B.bias",
                            "x.lora_embedding_A", "x.dora_layer.lora_A.weight"}) {
    EXPECT_EQ(peft_name(other), "") << other;
  }
}

// A folder with one module's matrices of these shapes, and perhaps a third tensor.
std::string tensors_error(const TestFolder& folder, std::vector<int64_t> a, std::vector<int64_t> b, const std::string& third = "") {
  const std::vector<float> zeros(64);
  std::vector<TensorToWrite> tensors = {{"base_model.model.x.lora_A.weight", Dtype::f32, std::move(a), zeros.data()}};
  if (!b.empty()) tensors.push_back({"base_model.model.x.lora_B.weight", Dtype::f32, std::move(b), zeros.data()});
  if (!third.empty()) tensors.push_back({third, Dtype::f32, {2}, zeros.data()});
  write_peft_adapter(folder.path(), {}, tensors);
  return error_of([&] { open_peft_tensors(folder.path()); });
}

TEST(PeftTensors, MistakesAreNamed) {
  const TestFolder folder;
  EXPECT_EQ(tensors_error(folder, {2, 4}, {8, 2}), "");
  expect_named(tensors_error(folder, {2, 4}, {8, 3}), {"x.lora_A.weight", "[2, 4]", "[8, 3]"});
  expect_named(tensors_error(folder, {2, 4}, {8}), {"x.lora_A.weight", "[8]"});
  expect_named(tensors_error(folder, {2, 4}, {}), {"no tensor base_model.model.x.lora_B.weight"});
  expect_named(tensors_error(folder, {2, 4}, {8, 2}, "base_model.model.x.lora_B.bias"),
               {"base_model.model.x.lora_B.bias", "not built yet"});
  expect_named(error_of([&] { open_peft_tensors(folder / "none"); }), {"none/adapter_model.safetensors"});
  make_folder(folder / "old");
  write_file_atomic(folder / "old/adapter_model.bin", "");
  expect_named(error_of([&] { open_peft_tensors(folder / "old"); }), {"adapter_model.bin", "safe_serialization"});
}

TEST(PeftTensors, AreCheckedAgainstTheModel) {
  ModelConfig c;
  c.hidden = 8, c.layers = 1, c.heads = 2, c.kv_heads = 1, c.head_dim = 4, c.intermediate = 12, c.vocab = 16;
  c.windows = {0};
  ModelOptions options;
  options.adapters["model.layers.0.self_attn.k_proj"] = {2, 1, 0};
  const Model model = make_model(c, options);
  const std::string k = "base_model.model.model.layers.0.self_attn.k_proj", q = "base_model.model.model.layers.0.self_attn.q_proj";
  const std::vector<float> zeros(64);
  const TestFolder folder;
  const auto error = [&](const std::string& path, std::vector<int64_t> a, std::vector<int64_t> b) {
    write_peft_adapter(folder.path(), {},
                       {{path + ".lora_A.weight", Dtype::f32, std::move(a), zeros.data()},
                        {path + ".lora_B.weight", Dtype::f32, std::move(b), zeros.data()}});
    return error_of([&] { check_adapter(model, open_peft_tensors(folder.path())); });
  };
  EXPECT_EQ(error(k, {2, 8}, {4, 2}), "");
  expect_named(error(k, {2, 6}, {4, 2}), {k + ".lora_A.weight", "[2, 6]", "[2, 8]"});
  expect_named(error(k, {3, 8}, {4, 3}), {k + ".lora_", "[2, 8]"});
  expect_named(error(q, {2, 8}, {8, 2}), {"no tensor " + k});
}

}  // namespace
}  // namespace tessera
