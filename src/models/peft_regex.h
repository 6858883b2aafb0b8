// The regular expressions of an adapter's config, in the syntax of Python's re as far as PCRE2 shares it. Each match has a bounded cost: an
// expression that backtracks without end is an Error, not a hang. Immutable, for all threads.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace tessera {

class PeftRegex {
 public:
  // Throws Error naming the key of adapter_config.json.
  PeftRegex(const std::string& key, const std::string& expression);
  bool matches(const std::string& path) const;  // the whole path, as re.fullmatch
  // The digits that the group named `number` has, when the beginning of the path matches (re.match). REQUIRES: such a group.
  std::optional<int64_t> number(const std::string& path) const;

 private:
  struct Free {
    void operator()(void* code) const;
  };
  bool search(const std::string& path, uint32_t options, void* match) const;

  std::string key_, expression_;
  std::unique_ptr<void, Free> code_;  // pcre2_code
};

}  // namespace tessera
