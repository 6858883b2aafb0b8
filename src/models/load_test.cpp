// Loading by ranges: what several ranks load, put together, is what one rank loads; quantized checkpoints are bitsandbytes' bytes.
#include "models/load.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "core/text.h"
#include "io/file.h"
#include "testing/golden.h"
#include "testing/gradients.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

struct Loaded {
  std::vector<std::byte> frozen;
  std::vector<float> values;
};

// Unit by unit, all ranks one after the other: a first round to collect the scales each would contribute, a second with all of them.
Loaded load_on(Model& m, int unit, const WeightSource& source, size_t ranks, Backend& backend) {
  const UnitLayout& layout = m.units[size_t(unit)];
  Loaded out{std::vector<std::byte>(layout.frozen_bytes), std::vector<float>(size_t(layout.trainable))};
  std::vector<std::vector<float>> exchanged;
  for (const bool collect : {true, false})
    for (size_t r = 0; r < ranks; ++r) {
      const auto cut = [&](size_t total, size_t align) {
        const size_t blocks = total / align;
        return Range{blocks * r / ranks * align, blocks * (r + 1) / ranks * align};
      };
      const Range frozen = cut(layout.frozen_bytes, 256), trainable = cut(size_t(layout.trainable), 64);
      size_t next = 0;
      load_unit(
          m, unit, source, frozen, out.frozen.data() + frozen.begin, trainable, out.values.data() + trainable.begin,
          [&](std::vector<float>& v, Range mine) {
            if (collect && r == 0) exchanged.emplace_back(v.size());
            if (collect) {
              std::copy(v.begin() + std::ptrdiff_t(mine.begin), v.begin() + std::ptrdiff_t(mine.end),
                        exchanged[next].begin() + std::ptrdiff_t(mine.begin));
            } else {
              v = exchanged[next];
            }
            ++next;
          },
          &backend);
    }
  return out;
}

TEST(Load, RangesPutTogetherAreTheWhole) {
  const auto backend = make_backend("cpu", 1);
  ModelConfig config;
  config.hidden = 32, config.layers = 2, config.heads = 4, config.kv_heads = 2, config.head_dim = 8, config.intermediate = 72,
  config.vocab = 50;
  config.windows = {0, 0};
  for (const bool quantized : {false, true}) {
    ModelOptions options;
    options.format = &find_format(quantized ? "nf4" : "dense");
    options.double_quant = true;
    options.adapters["model.layers.1.mlp.down_proj"] = {3, 2, 0};
    Model m = make_model(config, options);
    const WeightSource source;
    for (int unit = 0; unit <= m.root_unit(); ++unit) {
      const Loaded one = load_on(m, unit, source, 1, *backend);
      for (const size_t ranks : {2, 3, 5, 40}) {
        const Loaded many = load_on(m, unit, source, ranks, *backend);
        EXPECT_EQ(many.frozen, one.frozen) << "unit " << unit << " on " << ranks;
        EXPECT_EQ(many.values, one.values) << "unit " << unit << " on " << ranks;
      }
    }
  }
}

// dense_bf16, quantized while it is loaded, gives the tensors of the folder that bitsandbytes and transformers saved.
TEST(Load, QuantizedCheckpointIsThatOfBitsandbytes) {
  NEEDS_SHARED();
  const auto backend = make_backend("cpu", 1);
  const std::string dense = shared("golden/quant/checkpoints/dense_bf16");
  const TensorFiles files = TensorFiles::open(dense);
  const GoldenFile golden("golden/quant/checkpoints/nf4_double_quant");
  for (const Dtype compute : {Dtype::bf16, Dtype::f32}) {
    ModelOptions options;
    options.format = &find_format("nf4");
    options.double_quant = true;
    options.compute = compute;
    Model m = make_model(read_model_config(dense), options);
    WeightSource source;
    source.base = &files;
    int compared = 0;
    for (int unit = 0; unit < m.root_unit(); ++unit) {
      const Loaded loaded = load_on(m, unit, source, 1, *backend);
      for (const PartPlace& part : m.units[size_t(unit)].parts) {
        const std::vector<uint8_t> mine(reinterpret_cast<const uint8_t*>(loaded.frozen.data()) + part.begin,
                                        reinterpret_cast<const uint8_t*>(loaded.frozen.data()) + part.begin + part.bytes());
        if (ends_with(part.name, ".nested_offset")) {
          const std::string state = replace_all(part.name, ".nested_offset", ".quant_state.bitsandbytes__nf4");
          const auto bytes = golden.bytes(state);
          float offset;
          std::memcpy(&offset, mine.data(), sizeof offset);
          EXPECT_EQ(double(offset), nlohmann::json::parse(bytes.begin(), bytes.end()).at("nested_offset").get<double>()) << part.name;
        } else if (part.dtype == Dtype::u8 || ends_with(part.name, "absmax")) {
          EXPECT_EQ(mine, golden.bytes(part.name)) << part.name;
        } else {
          continue;
        }
        ++compared;
      }
    }
    EXPECT_EQ(compared, 2 * 7 * 4);
  }
}

// A file of one layer whose tensors begin at odd places when `shift` says so: a first tensor of one byte pushes the others.
std::string stored_model(const TestFolder& folder, const Model& m, Dtype dtype, bool shift) {
  std::string header = shift ? R"({"first":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})" : "{", data = shift ? "x" : "";
  const Rng rng(5, Purpose::init, "stored");
  uint64_t next = 0;
  const auto put = [&](const std::string& name, std::vector<int64_t> shape) {
    const size_t begin = data.size();
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    for (int64_t i = 0; i < n; ++i) {
      const float value = rng.normal(next++);
      const Bf16 bf16(value);
      const F16 f16(value);
      data.append(dtype == Dtype::f32   ? reinterpret_cast<const char*>(&value)
                  : dtype == Dtype::f16 ? reinterpret_cast<const char*>(&f16)
                                        : reinterpret_cast<const char*>(&bf16),
                  size_of(dtype));
    }
    header += str(header == "{" ? "" : ",", "\"", name, "\":{\"dtype\":\"", name_of(dtype), "\",\"shape\":", shape_text(shape),
                  ",\"data_offsets\":[", begin, ",", data.size(), "]}");
  };
  const ModelConfig& c = m.config;
  const std::string layer = "model.layers.0.";
  put("model.embed_tokens.weight", {c.vocab, c.hidden});
  for (const Linear* l :
       {&m.layers[0].q, &m.layers[0].k, &m.layers[0].v, &m.layers[0].o, &m.layers[0].gate, &m.layers[0].up, &m.layers[0].down})
    put(str(layer, l->name, ".weight"), {l->weight.out, l->weight.in});
  for (const char* norm : {"model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight", "model.norm.weight"})
    put(norm, {c.hidden});
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t size = header.size();
  const std::string path = folder.path(str(name_of(dtype), shift ? "_shifted" : "", ".safetensors"));
  write_file_atomic(path, std::string(reinterpret_cast<const char*>(&size), 8) + header + data);
  return path;
}

// Values are used where they lie when they can be, and copied when not: the same bits, whatever the dtype of the file.
TEST(Load, PlaceInTheFileDoesNotChangeBits) {
  const auto backend = make_backend("cpu", 2);
  const TestFolder folder;
  ModelConfig config;
  config.hidden = 64, config.layers = 1, config.heads = 4, config.kv_heads = 2, config.head_dim = 16, config.intermediate = 136,
  config.vocab = 70;
  config.windows = {0};
  for (const char* format : {"nf4", "dense"})
    for (const Dtype compute : {Dtype::bf16, Dtype::f32})
      for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
        ModelOptions options;
        options.format = &find_format(format);
        options.double_quant = true;
        options.compute = compute;
        Model m = make_model(config, options);
        std::vector<Loaded> loaded;
        for (const bool shift : {false, true})
          for (int unit = 0; unit <= m.root_unit(); ++unit) {
            const TensorFiles files = TensorFiles::open(stored_model(folder, m, dtype, shift));
            WeightSource source;
            source.base = &files;
            const StoredTensor& embedding = files.get("model.embed_tokens.weight");
            EXPECT_EQ(embedding.view(0, 1, nullptr).empty(), shift);
            loaded.push_back(load_on(m, unit, source, 1, *backend));
            if (unit < m.root_unit()) continue;
            std::vector<float> expected(size_t(embedding.size()));
            read_elements(Tensor{expected.data(), Dtype::f32, {embedding.size()}, nullptr}, embedding, 0, embedding.size());
            const std::byte* at = loaded.back().frozen.data() + m.units[size_t(unit)].find("model.embed_tokens.weight").begin;
            for (size_t i = 0; i < expected.size(); ++i)
              ASSERT_EQ(compute == Dtype::f32 ? reinterpret_cast<const float*>(at)[i] : float(reinterpret_cast<const Bf16*>(at)[i]),
                        compute == Dtype::f32 ? expected[i] : float(Bf16(expected[i])))
                  << i;
          }
        const size_t units = loaded.size() / 2;
        for (size_t u = 0; u < units; ++u) EXPECT_EQ(loaded[u].frozen, loaded[units + u].frozen) << format << " unit " << u;
      }
}

TEST(Load, AdapterStartsAsPeftStartsIt) {
  const auto backend = make_backend("cpu", 1);
  ModelConfig config;
  config.hidden = 64, config.layers = 1, config.heads = 4, config.kv_heads = 4, config.head_dim = 16, config.intermediate = 64,
  config.vocab = 50;
  config.windows = {0};
  ModelOptions options;
  options.adapters["model.layers.0.self_attn.q_proj"] = {8, 1, 0};
  Model m = make_model(config, options);
  for (const char* kind : {"true", "gaussian", "false"}) {
    WeightSource source;
    source.init_lora_weights = kind;
    const Loaded l = load_on(m, 0, source, 1, *backend);
    const auto stats = [&](const char* name, int64_t n) {
      const float* v = l.values.data() + m.units[0].find(str("model.layers.0.self_attn.q_proj.", name)).begin;
      double largest = 0, squares = 0;
      for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(double(v[i]))), squares += double(v[i]) * v[i];
      return std::pair{largest, std::sqrt(squares / double(n))};
    };
    const auto [a_largest, a_std] = stats("lora_A.weight", 8 * 64);
    const auto [b_largest, b_std] = stats("lora_B.weight", 64 * 8);
    if (std::string(kind) == "gaussian") {
      EXPECT_NEAR(a_std, 1.0 / 8, 0.02);
    } else {
      EXPECT_LE(a_largest, 1.0 / 8);
      EXPECT_NEAR(a_std, 1.0 / 8 / std::sqrt(3.0), 0.006);
    }
    EXPECT_EQ(b_largest > 0, std::string(kind) == "false");
    EXPECT_NEAR(b_std, std::string(kind) == "false" ? 1 / std::sqrt(8.0) / std::sqrt(3.0) : 0, 0.03);
  }
}

}  // namespace
}  // namespace tessera
