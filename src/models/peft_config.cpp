#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "io/json.h"
#include "models/peft.h"

namespace tessera {
namespace {

constexpr const char* file_of_config = "adapter_config.json";
constexpr double most_whole = 1 << 20;            // of ranks and layers
constexpr const char* layout_version = "0.21.2";  // of PEFT, whose key list is written

// Every key that PEFT 0.21 writes and this program does not use, with PEFT's default.
struct OtherKey {
  const char* name;
  const char* value;     // JSON
  bool changes_nothing;  // any value may be read
};
constexpr OtherKey other_keys[] = {
    {"alora_invocation_tokens", "null", false},
    {"arrow_config", "null", false},
    {"auto_mapping", "null", true},
    {"bias", "\"none\"", false},
    {"corda_config", "null", true},  // of an initialisation, which init_lora_weights names
    {"ensure_weight_tying", "false", false},
    {"eva_config", "null", true},
    {"fan_in_fan_out", "false", false},
    {"inference_mode", "true", true},
    {"kasa_config", "null", false},
    {"layer_replication", "null", false},
    {"loftq_config", "{}", true},
    {"lora_bias", "false", false},
    {"lora_ga_config", "null", true},
    {"megatron_config", "null", false},
    {"megatron_core", "\"megatron.core\"", true},
    {"modules_to_save", "null", false},
    {"monteclora_config", "null", false},
    {"peft_type", "\"LORA\"", true},
    {"peft_version", nullptr, true},
    {"qalora_group_size", "16", true},
    {"runtime_config", nullptr, true},
    {"target_parameters", "null", false},
    {"trainable_token_indices", "null", false},
    {"use_bdlora", "null", false},
    {"use_dora", "false", false},
    {"use_qalora", "false", false},
    {"velora_config", "null", false},
};

const OtherKey* find_other(const std::string& name) {
  for (const auto& key : other_keys)
    if (key.name == name) return &key;
  return nullptr;
}

// Files of older versions say null, [], {} or false for "not used".
bool says_nothing(const Json& v) { return v.is_null() || (v.is_structured() && v.empty()) || (v.is_boolean() && !v.get<bool>()); }

// Reads the keys one by one; each error names the file and the key.
class ConfigReader {
 public:
  ConfigReader(const std::string& path, const Json& json) : path_(path), json_(json) {}
  PeftConfig read();

 private:
  [[noreturn]] void refuse(const std::string& key, const Json& value, const std::string& allowed) const {
    fail(path_ + ": " + key, value.dump(), allowed, "correct " + std::string(file_of_config));
  }
  void check_type() const;
  void check_other(const std::string& key, const Json& value) const;
  void take(PeftConfig& c, const std::string& key, const Json& v) const;
  int64_t whole(const std::string& key, const Json& v, int64_t least) const;
  double number(const std::string& key, const Json& v) const;
  std::string text(const std::string& key, const Json& v) const;
  std::vector<std::string> texts(const std::string& key, const Json& v) const;
  ModuleNames modules(const std::string& key, const Json& v) const;
  std::string init(const Json& v) const;

  const std::string& path_;
  const Json& json_;
};

int64_t ConfigReader::whole(const std::string& key, const Json& v, int64_t least) const {
  const double given = v.is_number() ? v.get<double>() : -1;
  if (!(given >= double(least) && given <= most_whole && given == std::floor(given)))
    refuse(key, v, str("a whole number from ", least, " to ", int64_t(most_whole)));
  return int64_t(v.get<double>());
}

double ConfigReader::number(const std::string& key, const Json& v) const {
  if (!v.is_number()) refuse(key, v, "a number");
  return v.get<double>();
}

std::string ConfigReader::text(const std::string& key, const Json& v) const {
  if (!v.is_null() && !v.is_string()) refuse(key, v, "a string or null");
  return v.is_null() ? "" : v.get<std::string>();
}

std::vector<std::string> ConfigReader::texts(const std::string& key, const Json& v) const {
  if (v.is_null()) return {};
  if (v.is_string()) return {v.get<std::string>()};
  std::vector<std::string> out;
  if (!v.is_array()) refuse(key, v, "a list of strings, one string, or null");
  for (const Json& entry : v) {
    if (!entry.is_string()) refuse(key, v, "a list of strings");
    out.push_back(entry.get<std::string>());
  }
  return out;
}

ModuleNames ConfigReader::modules(const std::string& key, const Json& v) const {
  ModuleNames out;
  out.entries = texts(key, v);
  out.regex = v.is_string() && lower(out.entries[0]) != "all-linear";
  return out;
}

std::string ConfigReader::init(const Json& v) const {
  if (v.is_boolean()) return v.get<bool>() ? "true" : "false";
  if (v == "gaussian") return "gaussian";
  fail(path_ + ": init_lora_weights", v.dump() + " is not built yet", "true, false, gaussian",
       "convert the adapter to a plain one with PEFT (path_initial_model_for_weight_conversion)");
}

void ConfigReader::check_type() const {
  if (!json_.is_object()) fail(path_, "is no JSON object", "the config of a LoRA adapter", "give the folder of a PEFT adapter");
  if (!json_.contains("peft_type")) fail(path_, "no key peft_type", "\"peft_type\": \"LORA\"", "give the folder of a PEFT adapter");
  if (json_["peft_type"] != "LORA") refuse("peft_type", json_["peft_type"], "\"LORA\"; no other kind of adapter is built");
}

void ConfigReader::check_other(const std::string& key, const Json& value) const {
  const OtherKey* other = find_other(key);
  if (!other) return warn(path_ + ": the unknown key " + key + " is left out");
  if (other->changes_nothing) return;
  const Json standard = Json::parse(other->value);
  if (value == standard || (says_nothing(standard) && says_nothing(value))) return;
  fail(path_ + ": " + key, value.dump() + " is not built yet", standard.dump(), "use an adapter without " + key);
}

void ConfigReader::take(PeftConfig& c, const std::string& key, const Json& v) const {
  if (key == "r") {
    c.rank = whole(key, v, 1);
  } else if (key == "lora_alpha") {
    c.alpha = number(key, v);
  } else if (key == "lora_dropout") {
    c.dropout = number(key, v);
    if (!(c.dropout >= 0 && c.dropout < 1)) refuse(key, v, "a number from 0, below 1");
  } else if (key == "target_modules") {
    if (!v.is_null()) c.target_modules = modules(key, v);
  } else if (key == "exclude_modules") {
    c.exclude_modules = modules(key, v);
  } else if (key == "layers_to_transform") {
    for (const Json& layer : v.is_array() || v.is_null() ? v : Json::array({v})) c.layers_to_transform.push_back(whole(key, layer, 0));
  } else if (key == "layers_pattern") {
    if (v != "") c.layers_pattern = texts(key, v);
  } else if (key == "rank_pattern" || key == "alpha_pattern") {
    if (!v.is_object() && !v.is_null()) refuse(key, v, "an object of numbers");
    for (const auto& [pattern, value] : v.items()) {
      if (key[0] == 'r')
        c.rank_pattern.emplace_back(pattern, whole(key + ": " + pattern, value, 1));
      else
        c.alpha_pattern.emplace_back(pattern, number(key + ": " + pattern, value));
    }
  } else if (key == "use_rslora") {
    if (!v.is_boolean()) refuse(key, v, "true or false");
    c.use_rslora = v.get<bool>();
  } else if (key == "init_lora_weights") {
    c.init_lora_weights = init(v);
  } else if (key == "base_model_name_or_path") {
    c.base_model_name_or_path = text(key, v);
  } else if (key == "revision") {
    c.revision = text(key, v);
  } else if (key == "task_type") {
    c.task_type = text(key, v);
  } else {
    check_other(key, v);
  }
}

PeftConfig ConfigReader::read() {
  check_type();
  PeftConfig c;
  c.task_type = "";
  for (const auto& [key, value] : json_.items()) take(c, key, value);
  return c;
}

Json nullable(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

// As an integer when it is one.
Json number(double v) { return v == std::floor(v) && std::abs(v) < 1e15 ? Json(int64_t(v)) : Json(v); }

Json modules(const ModuleNames& names) {
  if (names.empty()) return nullptr;
  return names.regex || names.all_linear() ? Json(names.entries[0]) : Json(names.entries);
}

template <class T>
Json pattern(const std::vector<std::pair<std::string, T>>& rows) {
  Json out = Json::object();
  for (const auto& [key, value] : rows) out[key] = number(double(value));
  return out;
}

}  // namespace

PeftConfig read_peft_config(const std::string& folder) {
  const std::string path = folder + "/" + file_of_config;
  const Json json = read_json(path);
  return ConfigReader(path, json).read();
}

std::string peft_config_text(const PeftConfig& c) {
  std::map<std::string, Json> keys;
  for (const auto& other : other_keys)
    if (other.value) keys[other.name] = Json::parse(other.value);
  keys["peft_version"] = layout_version;
  keys["r"] = c.rank;
  keys["lora_alpha"] = number(c.alpha);
  keys["lora_dropout"] = c.dropout;
  keys["target_modules"] = modules(c.target_modules);
  keys["exclude_modules"] = modules(c.exclude_modules);
  keys["layers_to_transform"] = c.layers_to_transform.empty() ? Json(nullptr) : Json(c.layers_to_transform);
  keys["layers_pattern"] = c.layers_pattern.empty() ? Json(nullptr) : Json(c.layers_pattern);
  keys["rank_pattern"] = pattern(c.rank_pattern);
  keys["alpha_pattern"] = pattern(c.alpha_pattern);
  keys["use_rslora"] = c.use_rslora;
  keys["init_lora_weights"] = c.init_lora_weights == "true" ? Json(true) : c.init_lora_weights == "false" ? Json(false) : Json("gaussian");
  keys["base_model_name_or_path"] = nullable(c.base_model_name_or_path);
  keys["revision"] = nullable(c.revision);
  keys["task_type"] = nullable(c.task_type);
  Json out = Json::object();
  for (auto& [key, value] : keys) out[key] = std::move(value);
  return out.dump(2, ' ', true);
}

}  // namespace tessera
