// The model families: a table of model_type to what only that family's config.json says.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"

namespace tessera {

// config.json with checked access; every failure names the file, the key and the value.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::ordered_json& json, std::string where) : json_(json), where_(std::move(where)) {}
  bool has(const char* key) const;       // present and not null
  bool mentions(const char* key) const;  // present, perhaps null
  // Without `most`: what fits 31 bits, so that products of two fit 64.
  int64_t integer(const char* key, int64_t least = 1, int64_t most = INT32_MAX) const;
  int64_t integer_or(const char* key, int64_t fallback, int64_t least = 1, int64_t most = INT32_MAX) const;
  double number(const char* key) const;
  double number_or(const char* key, double fallback) const;
  double positive(const char* key) const;
  double positive_or(const char* key, double fallback) const;
  bool flag_or(const char* key, bool fallback) const;
  std::string text(const char* key) const;
  std::string text_or(const char* key, const std::string& fallback) const;
  std::vector<int64_t> ids_or_none(const char* key) const;  // a token id or a list of them
  const nlohmann::ordered_json& json() const { return json_; }
  const std::string& where() const { return where_; }
  [[noreturn]] void refuse(const char* key, const std::string& given, const std::string& allowed, const std::string& remedy) const;

 private:
  const nlohmann::ordered_json& json_;
  std::string where_;
};

struct Family {
  std::string_view model_type;
  void (*read)(const ConfigReader&, ModelConfig&);  // after the common keys are read
};

const Family& find_family(const ConfigReader&);

void read_llama(const ConfigReader&, ModelConfig&);
void read_mistral(const ConfigReader&, ModelConfig&);
void read_qwen2(const ConfigReader&, ModelConfig&);

}  // namespace tessera
