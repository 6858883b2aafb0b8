// Model families against transformers: logits, hidden states, loss, every gradient, packed rows, greedy ids.
#include <cmath>
#include <tuple>

#include "data/tokenizer.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/train_test.h"

namespace tessera {
namespace {

const std::vector<std::string> families{"llama_mha_untied", "llama_gqa_tied_llama3rope", "mistral", "qwen2"};
const std::vector<std::string> variants{"options/llama_bias",
                                        "options/llama_head_dim",
                                        "options/llama_rope_linear",
                                        "options/llama_rope_llama3_factor32",
                                        "options/mistral_full_attention",
                                        "options/qwen2_sliding"};

std::string folder(const std::string& name) { return shared("golden/models/" + name); }
using ModelOnDevice = std::tuple<const char*, std::string>;
std::string test_name(const testing::TestParamInfo<ModelOnDevice>& info) {
  std::string s = std::get<0>(info.param) + ("_" + std::get<1>(info.param));
  for (char& c : s) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return s;
}

class OnDevice : public testing::TestWithParam<ModelOnDevice> {
 protected:
  const char* device() const { return std::get<0>(GetParam()); }
  const std::string& name() const { return std::get<1>(GetParam()); }
};
auto on_devices(const std::vector<std::string>& models) {
  return testing::Combine(testing::ValuesIn(f32_devices()), testing::ValuesIn(models));
}

class Family : public OnDevice {
 protected:
  GoldenFile expected() const { return GoldenFile("golden/models/" + name() + "/expected.safetensors"); }
};
class FamilyWithGradients : public Family {};

TEST_P(Family, LogitsAndLossAreThoseOfTransformers) {
  NEEDS_SHARED();
  const GoldenFile f = expected();
  const GoldenJson facts = golden_json("golden/models/" + name() + "/expected.json");
  TestModel m(dense_request(folder(name())), device());
  const Batch b = golden_batch(f);
  const auto mask = f.doubles("attention_mask");
  EXPECT_LT(relative_error(real_rows(doubles(m.model.pass.logits(b)), mask), real_rows(f.doubles("logits_f64"), mask)), 1e-5);
  EXPECT_EQ(b.target_tokens, facts.at("tokens_in_loss").get<int64_t>());
  EXPECT_NEAR(m.model.pass.evaluate(b) / double(b.target_tokens), facts.at("loss_mean_f64").get<double>(), 5e-6);
}

TEST_P(Family, Bfloat16StaysNear) {
  NEEDS_SHARED();
  const GoldenFile f = expected();
  TestModel m(dense_request(folder(name()), Dtype::bf16), device());
  const Batch b = golden_batch(f);
  const auto mask = f.doubles("attention_mask");
  EXPECT_LT(relative_error(real_rows(doubles(m.model.pass.logits(b)), mask), real_rows(f.doubles("logits_f64"), mask)), 5e-2);
  EXPECT_NEAR(m.model.pass.evaluate(b) / double(b.target_tokens),
              golden_json("golden/models/" + name() + "/expected.json").at("loss_mean_f64").get<double>(), 1e-2);
}

TEST_P(FamilyWithGradients, HiddenStates) {
  NEEDS_SHARED();
  const GoldenFile f = expected();
  TestModel m(dense_request(folder(name())), device());
  const auto mask = f.doubles("attention_mask");
  struct Watched {
    const GoldenFile& f;
    const std::vector<double>& mask;
    int seen = 0;
  } watched{f, mask};
  m.model.pass.logits(
      golden_batch(f),
      [](void* context, int layer, Tensor x) {
        auto& w = *static_cast<Watched*>(context);
        const std::string name = layer < 0 ? "hidden.embedding" : "hidden.layer." + std::to_string(layer);
        EXPECT_LT(relative_error(real_rows(to_doubles(x), w.mask), real_rows(w.f.doubles(name), w.mask)), 1e-5) << name;
        ++w.seen;
      },
      &watched);
  EXPECT_EQ(watched.seen, int(m.model.config.layers) + 1);
}

// Every parameter's gradient, with and without recompute.
TEST_P(FamilyWithGradients, EveryGradient) {
  NEEDS_SHARED();
  const GoldenFile f = expected(), golden("golden/models/" + name() + "/gradients.safetensors");
  const Batch b = golden_batch(f);
  for (const bool recompute : {true, false}) {
    ModelRequest request = dense_request(folder(name()));
    request.train_base = true;
    request.keeping.layers = recompute ? 0 : Keeping::all_layers;
    TestModel m(request, device());
    m.model.pass.train(b, 1 / float(b.target_tokens));
    const auto mine = m.gradients();
    ASSERT_EQ(mine.size(), golden.names().size());
    for (const auto& [name, gradient] : mine) EXPECT_LT(relative_error(gradient, golden.doubles(name)), 1e-4) << name;
    EXPECT_LT(relative_error(to_doubles(m.model.pass.embedding_gradient()), f.doubles("grad.hidden.embedding")), 1e-4);
  }
}

TEST_P(FamilyWithGradients, GreedyIds) {
  NEEDS_SHARED();
  TestModel m(dense_request(folder(name())), device());
  const GoldenJson generate_cases = golden_json("golden/models/" + name() + "/generate.json");
  for (const auto& c : generate_cases.at("cases")) {
    const auto tokens = c.at("tokens").get<std::vector<int32_t>>();
    const auto ids =
        generate(m.model.pass, c.at("prompt").get<std::vector<int32_t>>(), int64_t(tokens.size()), {}, {}, [](int32_t) { return true; });
    EXPECT_EQ(ids, tokens);
  }
  const auto& stop = generate_cases.at("stop");
  const auto tokens = stop.at("tokens").get<std::vector<int32_t>>();
  EXPECT_EQ(generate(m.model.pass, stop.at("prompt").get<std::vector<int32_t>>(), 64, {tokens.back()}, {}, [](int32_t) { return true; }),
            tokens);
}

// The same model in the spelling of transformers 4.
TEST_P(FamilyWithGradients, BothConfigSpellings) {
  NEEDS_SHARED();
  const GoldenFile f = expected();
  const TestFolder copy;
  std::filesystem::copy(folder(name()) + "/config_v4.json", copy.path("config.json"));
  std::filesystem::create_symlink(folder(name()) + "/model.safetensors", copy.path("model.safetensors"));
  TestModel v4(dense_request(copy.path()), device()), v5(dense_request(folder(name())), device());
  EXPECT_EQ(v4.model.pass.logits(golden_batch(f)), v5.model.pass.logits(golden_batch(f)));
}

INSTANTIATE_TEST_SUITE_P(Models, Family, on_devices([] {
                           auto all = families;
                           all.insert(all.end(), variants.begin(), variants.end());
                           return all;
                         }()),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Models, FamilyWithGradients, on_devices(families), test_name);

// The weights stored as BF16, as F16, and in three shards.
TEST(StoredVariants, LogitsOfTheRoundedWeights) {
  NEEDS_SHARED();
  const Batch b = golden_batch(GoldenFile("golden/models/llama_gqa_tied_llama3rope/expected.safetensors"));
  const auto mask = GoldenFile("golden/models/llama_gqa_tied_llama3rope/expected.safetensors").doubles("attention_mask");
  for (const char* variant : {"bfloat16", "float16", "sharded"}) {
    const std::string name = std::string("llama_gqa_tied_llama3rope_") + variant;
    TestModel m(dense_request(folder(name)));
    const std::string values = variant == std::string("sharded") ? "llama_gqa_tied_llama3rope" : name;  // shards hold the same weights
    const GoldenFile expected("golden/models/" + values + "/expected.safetensors");
    EXPECT_LT(relative_error(real_rows(doubles(m.model.pass.logits(b)), mask), real_rows(expected.doubles("logits"), mask)), 1e-5) << name;
  }
}

// One row of three sequences: each is as if it were run apart.
class Packed : public OnDevice {};
TEST_P(Packed, SequencesDoNotSeeEachOther) {
  NEEDS_SHARED();
  const GoldenFile f("golden/models/" + name() + "/packed.safetensors");
  Batch b = golden_batch(f);
  const auto ends = f.doubles("cumulative_lengths");
  for (size_t s = 0; s + 1 < ends.size(); ++s)
    for (auto i = size_t(ends[s]); i < size_t(ends[s + 1]); ++i)
      b.positions[i] = int32_t(i - size_t(ends[s])), b.starts[i] = int32_t(ends[s]);
  ModelRequest request = dense_request(folder(name()));
  request.train_base = true;
  TestModel m(request, device());
  EXPECT_LT(relative_error(doubles(m.model.pass.logits(b)), f.doubles("logits")), 1e-5);
  m.model.pass.train(b, 1 / float(b.target_tokens));
  for (const std::string& part : f.names()) {
    if (part == "grad.hidden.embedding") {
      EXPECT_LT(relative_error(to_doubles(m.model.pass.embedding_gradient()), f.doubles(part)), 1e-4);
    }
    if (part.find("k_proj") != std::string::npos) {
      EXPECT_LT(relative_error(m.gradients().at("model.layers.0.self_attn.k_proj.weight"), f.doubles(part)), 1e-4) << part;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Models, Packed, on_devices({"llama_gqa_tied_llama3rope", "qwen2", "mistral"}), test_name);

const std::string stories = "models/stories260k";

TEST(Stories260k, TextLoss) {
  NEEDS_SHARED();
  const GoldenJson text = golden_json("golden/models/stories260k/text.json");
  const auto ids = Tokenizer::load(shared(stories)).encode(text.at("text").get<std::string>(), true);
  ASSERT_EQ(ids.size(), text.at("token_count").get<size_t>());
  TestModel m(dense_request(shared(stories)));
  double sum = 0;
  int64_t tokens = 0;
  for (const auto& w : text.at("windows")) {
    Example row;
    const auto begin = ids.begin() + w.at("start").get<std::ptrdiff_t>();
    row.ids.assign(begin, begin + w.at("tokens").get<std::ptrdiff_t>());
    row.labels = row.ids;
    const Batch b = collate({&row});
    const double loss = m.model.pass.evaluate(b);
    EXPECT_NEAR(loss / double(b.target_tokens), w.at("loss_sum").get<double>() / w.at("tokens_in_loss").get<double>(), 5e-6);
    sum += loss, tokens += b.target_tokens;
  }
  EXPECT_NEAR(std::exp(sum / double(tokens)), text.at("perplexity").get<double>(), 1e-4);
}

TEST(Stories260k, EveryGradient) {
  NEEDS_SHARED();
  const GoldenFile golden("golden/models/stories260k/gradients.safetensors");
  const Batch b = golden_batch(GoldenFile("golden/models/stories260k/gradient_batch.safetensors"));
  ModelRequest request = dense_request(shared(stories));
  request.train_base = true;
  TestModel m(request);
  m.model.pass.train(b, 1 / float(b.target_tokens));
  const double loss = m.model.pass.take_losses().at(0) / double(b.target_tokens);
  EXPECT_NEAR(loss, golden_json("golden/models/stories260k/gradients.json").at("loss_mean_f64").get<double>(), 5e-6);
  for (const auto& [name, gradient] : m.gradients()) EXPECT_LT(relative_error(gradient, golden.doubles(name)), 1e-4) << name;
}

TEST(Stories260k, GreedyText) {
  NEEDS_SHARED();
  TestModel m(dense_request(shared(stories)));
  const Tokenizer tokenizer = Tokenizer::load(shared(stories));
  const GoldenJson facts = golden_json("golden/models/stories260k/generate.json");
  for (const auto& c : facts.at("cases")) {
    const auto prompt = tokenizer.encode(c.at("text").get<std::string>(), true);
    EXPECT_EQ(prompt, c.at("prompt").get<std::vector<int32_t>>());
    const auto tokens = c.at("tokens").get<std::vector<int32_t>>();
    EXPECT_EQ(generate(m.model.pass, prompt, int64_t(tokens.size()), {}, {}, [](int32_t) { return true; }), tokens);
  }
}

}  // namespace
}  // namespace tessera
