// The split patterns of tokenizer.json: regular expressions in Oniguruma's syntax, run by PCRE2 on UTF-8. Immutable, for all threads.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::tokenizing {

struct Span {
  size_t begin = 0, end = 0;
};

class Regex {
 public:
  // Throws Error naming `where` for a pattern that is wrong, or that PCRE2 would read in another way.
  Regex(const std::string& pattern, const std::string& where);
  void find_all(std::string_view text, std::vector<Span>& found) const;  // matches from left to right. REQUIRES: valid UTF-8
  bool matches_at(std::string_view text, size_t at) const;               // a match begins exactly there

 private:
  struct Free {
    void operator()(void* code) const;
  };
  std::unique_ptr<void, Free> code_;  // pcre2_code
};

}  // namespace tessera::tokenizing
