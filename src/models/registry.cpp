#include "models/registry.h"

#include <array>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {
constexpr std::array families{
    Family{"llama", read_llama},
    Family{"mistral", read_mistral},
    Family{"qwen2", read_qwen2},
};
// The library converts an unsigned value beyond 63 bits to a negative one.
bool is_within(const nlohmann::ordered_json& v, int64_t least, int64_t most) {
  if (!v.is_number_integer() || (v.is_number_unsigned() && v.get<uint64_t>() > uint64_t(INT64_MAX))) return false;
  return v.get<int64_t>() >= least && v.get<int64_t>() <= most;
}
}  // namespace

const Family& find_family(const ConfigReader& config) {
  const std::string type = config.text("model_type");
  std::vector<std::string> names;
  for (const Family& f : families) {
    if (f.model_type == type) return f;
    names.emplace_back(f.model_type);
  }
  config.refuse("model_type", type, join(names, ", "), "choose a model of one of these families");
}

bool ConfigReader::mentions(const char* key) const { return json_.contains(key); }
bool ConfigReader::has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }

void ConfigReader::refuse(const char* key, const std::string& given, const std::string& allowed, const std::string& remedy) const {
  fail(str(where_, ", key ", key), given, allowed, remedy);
}

int64_t ConfigReader::integer(const char* key, int64_t least, int64_t most) const {
  const std::string allowed = str("an integer from ", least, " to ", most), remedy = "take config.json from the model's own folder";
  if (!has(key)) refuse(key, "absent", allowed, remedy);
  const auto& v = json_.at(key);
  if (!is_within(v, least, most)) refuse(key, v.dump(), allowed, remedy);
  return v.get<int64_t>();
}

int64_t ConfigReader::integer_or(const char* key, int64_t fallback, int64_t least, int64_t most) const {
  return has(key) ? integer(key, least, most) : fallback;
}

double ConfigReader::number(const char* key) const {
  if (!has(key)) refuse(key, "absent", "a number", "take config.json from the model's own folder");
  if (!json_.at(key).is_number()) refuse(key, json_.at(key).dump(), "a number", "take config.json from the model's own folder");
  return json_.at(key).get<double>();
}

double ConfigReader::number_or(const char* key, double fallback) const { return has(key) ? number(key) : fallback; }

double ConfigReader::positive(const char* key) const {
  const double v = number(key);
  if (!(v > 0)) refuse(key, json_.at(key).dump(), "a number above 0", "take config.json from the model's own folder");
  return v;
}

double ConfigReader::positive_or(const char* key, double fallback) const { return has(key) ? positive(key) : fallback; }

bool ConfigReader::flag_or(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!json_.at(key).is_boolean()) refuse(key, json_.at(key).dump(), "true or false", "correct the value");
  return json_.at(key).get<bool>();
}

std::string ConfigReader::text(const char* key) const {
  if (!has(key)) refuse(key, "absent", "a text", "take config.json from the model's own folder");
  if (!json_.at(key).is_string()) refuse(key, json_.at(key).dump(), "a text", "correct the value");
  return json_.at(key).get<std::string>();
}

std::string ConfigReader::text_or(const char* key, const std::string& fallback) const { return has(key) ? text(key) : fallback; }

std::vector<int64_t> ConfigReader::ids_or_none(const char* key) const {
  std::vector<int64_t> out;
  if (!has(key)) return out;
  const auto& v = json_.at(key);
  const auto add = [&](const nlohmann::ordered_json& e) {
    if (!is_within(e, 0, INT32_MAX)) refuse(key, e.dump(), "a token id from 0, or a list of them", "correct the value");
    out.push_back(e.get<int64_t>());
  };
  if (v.is_array()) {
    for (const auto& e : v) add(e);
  } else {
    add(v);
  }
  return out;
}

}  // namespace tessera
