// ModelConfig: what a Hugging Face config.json says of a model, in both spellings (transformers 4: rope_theta, rope_scaling, torch_dtype;
// 5: rope_parameters, dtype). A family is one row of registry.cpp and one file that reads what only it has.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace tessera {

struct RopeConfig {
  std::string type = "default";  // default, linear, llama3
  double theta = 10000;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_positions = 0;
};

struct ModelConfig {
  std::string path;        // the folder
  std::string model_type;  // "llama"
  int64_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocab = 0;
  int64_t max_positions = 0;
  double rms_eps = 1e-6, initializer_range = 0.02;
  bool tied = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  std::vector<int64_t> windows;  // per layer; 0: none
  RopeConfig rope;
  int64_t bos = -1;
  std::vector<int64_t> eos;  // of config.json and generation_config.json
  std::string dtype;         // "float32", "bfloat16", ... as the file was saved; "" when not said
  bool stored_nf4 = false;   // quantization_config: the projections are saved in bitsandbytes' NF4
  bool stored_double_quant = false;
  int64_t parameters() const;
};

// Reads FOLDER/config.json. Throws Error naming config.json, the key, its value and what is allowed.
ModelConfig read_model_config(const std::string& folder);

// cos and sin, (positions, head_dim/2) f32 each, of the pairs (i, i + head_dim/2). Angles are f32 products position x inv_freq, as in
// transformers. Sources: transformers modeling_rope_utils.py; llama3: Meta, Llama 3.1.
struct RopeTables {
  int64_t positions = 0, half = 0;
  std::vector<float> inv_freq, cos, sin;
};
RopeTables rope_tables(const ModelConfig&, int64_t positions);

}  // namespace tessera
