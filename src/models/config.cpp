#include "models/config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "io/file.h"
#include "io/json.h"
#include "models/registry.h"

namespace tessera {
namespace {

// Far beyond every model there is, and so small that the bytes of a whole model's optimizer state fit 63 bits.
constexpr int64_t most_layers = 8192, most_width = int64_t(1) << 20, most_vocab = int64_t(1) << 24;

void read_sizes(const ConfigReader& json, ModelConfig& c) {
  c.hidden = json.integer("hidden_size", 1, most_width);
  c.layers = json.integer("num_hidden_layers", 1, most_layers);
  c.heads = json.integer("num_attention_heads", 1, most_width);
  c.kv_heads = json.integer_or("num_key_value_heads", c.heads, 1, most_width);
  c.intermediate = json.integer("intermediate_size", 1, 4 * most_width);
  c.vocab = json.integer("vocab_size", 1, most_vocab);
  c.max_positions = json.integer_or("max_position_embeddings", 2048);
  if (json.has("head_dim")) {
    c.head_dim = json.integer("head_dim", 1, most_width);
  } else {
    if (c.hidden % c.heads)
      json.refuse("num_attention_heads", str(c.heads, " does not divide hidden_size ", c.hidden), "a divisor of hidden_size, or head_dim",
                  "correct the value");
    c.head_dim = c.hidden / c.heads;
  }
  if (c.heads % c.kv_heads)
    json.refuse("num_key_value_heads", str(c.kv_heads, " does not divide num_attention_heads ", c.heads),
                "a divisor of num_attention_heads", "correct the value");
  if (c.heads * c.head_dim > most_width)
    json.refuse("head_dim", str(c.head_dim, " for each of ", c.heads, " heads"), str("a product up to ", most_width), "correct the value");
  if (c.head_dim % 2) json.refuse("head_dim", str(c.head_dim), "an even number", "correct the value");
}

void read_rope_scaling(const ConfigReader& scaling, ModelConfig& c) {
  RopeConfig& r = c.rope;
  r.type = scaling.text_or("rope_type", scaling.text_or("type", "default"));
  r.theta = scaling.positive_or("rope_theta", r.theta);
  if (scaling.number_or("partial_rotary_factor", 1) != 1)
    scaling.refuse("partial_rotary_factor", scaling.json().at("partial_rotary_factor").dump(), "1", "partial rotary is not supported yet");
  if (r.type == "default") return;
  if (r.type == "linear" || r.type == "llama3") {
    r.factor = scaling.positive("factor");
  } else {
    scaling.refuse("rope_type", r.type, "default, linear, llama3", "dynamic, yarn and longrope are not supported yet");
  }
  if (r.type == "llama3") {
    r.low_freq_factor = scaling.positive("low_freq_factor");
    r.high_freq_factor = scaling.positive("high_freq_factor");
    if (r.high_freq_factor <= r.low_freq_factor)
      scaling.refuse("high_freq_factor", str(r.high_freq_factor), str("a number above low_freq_factor ", r.low_freq_factor),
                     "correct the value");
    r.original_max_positions = scaling.integer("original_max_position_embeddings");
  }
}

// transformers 4: rope_theta and rope_scaling; 5: rope_parameters.
void read_rope(const ConfigReader& json, ModelConfig& c) {
  c.rope.theta = json.positive_or("rope_theta", c.rope.theta);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!json.has(key)) continue;
    const auto& inner = json.json().at(key);
    if (!inner.is_object()) json.refuse(key, inner.dump(), "an object or null", "correct the value");
    read_rope_scaling(ConfigReader(inner, str(json.where(), ", ", key)), c);
  }
}

void read_quantization(const ConfigReader& json, ModelConfig& c) {
  const std::string method = json.text_or("quant_method", "bitsandbytes"),
                    remedy = "give the original model folder; it is quantized while it is loaded";
  if (method != "bitsandbytes") json.refuse("quant_method", method, "bitsandbytes", remedy);
  if (!json.flag_or("load_in_4bit", false)) json.refuse("load_in_4bit", "false", "true (int8 checkpoints are not read yet)", remedy);
  const std::string type = json.text_or("bnb_4bit_quant_type", "fp4");
  if (type != "nf4") json.refuse("bnb_4bit_quant_type", type, "nf4", remedy);
  c.stored_nf4 = true;
  c.stored_double_quant = json.flag_or("bnb_4bit_use_double_quant", false);
}

void read_common(const ConfigReader& json, ModelConfig& c) {
  read_sizes(json, c);
  read_rope(json, c);
  c.windows.assign(static_cast<size_t>(c.layers), 0);
  c.rms_eps = json.positive_or("rms_norm_eps", 1e-6);
  c.initializer_range = json.positive_or("initializer_range", 0.02);
  c.tied = json.flag_or("tie_word_embeddings", false);
  c.dtype = json.text_or("dtype", json.text_or("torch_dtype", ""));
  c.bos = json.integer_or("bos_token_id", -1, 0);
  c.eos = json.ids_or_none("eos_token_id");
  const std::string act = json.text_or("hidden_act", "silu");
  if (act != "silu" && act != "swish") json.refuse("hidden_act", act, "silu", "other activations are not supported yet");
  if (json.has("quantization_config")) {
    const auto& inner = json.json().at("quantization_config");
    if (!inner.is_object()) json.refuse("quantization_config", inner.dump(), "an object or null", "correct the value");
    read_quantization(ConfigReader(inner, json.where() + ", quantization_config"), c);
  }
}

// Generation may end at more ids than config.json names.
void read_generation_eos(const std::string& folder, ModelConfig& c) {
  const std::string path = folder + "/generation_config.json";
  if (!file_exists(path)) return;
  const Json json = read_json(path);
  for (const int64_t id : ConfigReader(json, path).ids_or_none("eos_token_id"))
    if (std::find(c.eos.begin(), c.eos.end(), id) == c.eos.end()) c.eos.push_back(id);
}

}  // namespace

ModelConfig read_model_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  if (!folder_exists(folder))
    fail(str("model folder ", folder), "does not exist", "a Hugging Face model folder (config.json, *.safetensors, tokenizer)",
         "download the model, or correct the path");
  if (!file_exists(path)) fail(path, "does not exist", "the config.json of a Hugging Face model folder", "give the folder that holds it");
  const Json json = read_json(path);
  if (!json.is_object()) fail(path, "is not a JSON object", "the config.json of a Hugging Face model", "take the model's own file");
  const ConfigReader reader(json, path);
  if (reader.has("auto_map"))
    warn(str(path, " names Python code (auto_map); no code of a model folder is ever run, the model is read by its model_type"));
  ModelConfig c;
  c.path = folder;
  const Family& family = find_family(reader);
  c.model_type = family.model_type;
  read_common(reader, c);
  family.read(reader, c);
  read_generation_eos(folder, c);
  return c;
}

int64_t ModelConfig::parameters() const {
  const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  int64_t layer = hidden * (2 * q + 2 * kv + 3 * intermediate + 2);
  if (qkv_bias) layer += q + 2 * kv;
  if (o_bias) layer += hidden;
  if (mlp_bias) layer += 2 * intermediate + hidden;
  return layers * layer + vocab * hidden * (tied ? 1 : 2) + hidden;
}

}  // namespace tessera
