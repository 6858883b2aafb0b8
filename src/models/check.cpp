#include <cstring>
#include <map>

#include "core/error.h"
#include "core/text.h"
#include "models/load.h"
#include "models/stored_codes.h"

namespace tessera {
namespace {

std::string bracketed(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += str(i ? ", " : "", shape[i]);
  return s + "]";
}

std::vector<int64_t> sizes(const Shape& s) { return {s.dim.begin(), s.dim.begin() + s.rank}; }

std::map<std::string, std::vector<int64_t>> demanded(const ModelConfig& c) {
  std::map<std::string, std::vector<int64_t>> out;
  for (const auto& unit : make_model(c, {}).units)
    for (const auto& p : unit.parts) out[p.name] = sizes(p.shape);
  return out;
}

std::string where(const StoredTensor& t) { return str(t.file->path(), ", tensor ", t.name); }

void check_tied_head(const StoredTensor& head, const StoredTensor& embed) {
  if (head.dtype_name == embed.dtype_name && head.bytes == embed.bytes && !std::memcmp(head.data, embed.data, head.bytes)) return;
  fail(where(head), "differs from model.embed_tokens.weight, but config.json says tie_word_embeddings: true",
       "one matrix for both, or tie_word_embeddings: false", "set tie_word_embeddings to false in config.json if the head is its own");
}

bool ignored(const std::string& name) { return ends_with(name, "rotary_emb.inv_freq"); }

void check_present(const ModelConfig& c, const TensorFiles& files, const std::string& name, const std::vector<int64_t>& shape) {
  const StoredTensor* t = files.find(name);
  if (!t)
    fail(str(files.path(), " (model.safetensors or its index), tensor ", name), "is absent", str("shape ", bracketed(shape)),
         name == "lm_head.weight" ? "take the whole checkpoint, or set tie_word_embeddings to true in config.json"
                                  : "take the whole checkpoint");
  if (shape.size() == 2 && find_stored_codes(files, name, shape[0], shape[1])) return;
  if (t->shape != shape)
    fail(where(*t), str("has shape ", bracketed(t->shape)), str(bracketed(shape), ", as config.json of ", c.path, " demands"),
         "take config.json and weights from the same model");
  if (!t->known_dtype || (t->dtype != Dtype::f32 && t->dtype != Dtype::f16 && t->dtype != Dtype::bf16))
    fail(where(*t), str("has dtype ", t->dtype_name), "F32, F16, BF16", "give the original, unquantized checkpoint");
}

}  // namespace

void check_checkpoint(const ModelConfig& c, const TensorFiles& files) {
  const auto wanted = demanded(c);
  for (const auto& [name, shape] : wanted) check_present(c, files, name, shape);
  for (const auto& [name, tensor] : files.all()) {
    if (wanted.count(name) || ignored(name) || wanted.count(owner_of_stored_part(name))) continue;
    if (c.tied && name == "lm_head.weight") {
      check_tied_head(tensor, files.get("model.embed_tokens.weight"));
      continue;
    }
    std::vector<std::string> names;
    for (const auto& [known, shape] : wanted) names.push_back(known);
    const std::string near = nearest(name, names);
    fail(where(tensor), "is not part of the model that config.json describes",
         near.empty() ? "the tensors of this architecture" : "for example " + near, "take config.json and weights from the same model");
  }
}

}  // namespace tessera
