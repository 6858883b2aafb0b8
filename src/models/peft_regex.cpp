#include "models/peft_regex.h"

#include <charconv>

#include "core/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace tessera {
namespace {

constexpr size_t longest = 16384;           // bytes of an expression; lists of layers are written out in some
constexpr uint32_t most_steps = 1'000'000;  // of one match; paths have some 50 letters
constexpr uint32_t most_kib = 16 * 1024;

struct MatchFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct ContextFree {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

pcre2_code* code_of(void* code) { return static_cast<pcre2_code*>(code); }

std::unique_ptr<pcre2_match_data, MatchFree> match_data(void* code) {
  return std::unique_ptr<pcre2_match_data, MatchFree>(pcre2_match_data_create_from_pattern(code_of(code), nullptr));
}

pcre2_match_context* limits() {
  static const auto context = [] {
    std::unique_ptr<pcre2_match_context, ContextFree> made(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(made.get(), most_steps);
    pcre2_set_heap_limit(made.get(), most_kib);
    return made;
  }();
  return context.get();
}

}  // namespace

void PeftRegex::Free::operator()(void* code) const { pcre2_code_free(code_of(code)); }

PeftRegex::PeftRegex(const std::string& key, const std::string& expression) : key_(key), expression_(expression) {
  int error = PCRE2_ERROR_PATTERN_STRING_TOO_LONG;
  size_t at = 0;
  if (expression.size() <= longest)
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(), PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C,
                              &error, &at, nullptr));
  if (code_) return;
  char words[256] = "";
  pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(words), sizeof words);
  fail(key, "the expression " + expression + ": " + words, "a regular expression", "write it more simply, or list the names");
}

bool PeftRegex::search(const std::string& path, uint32_t options, void* match) const {
  const int found = pcre2_match(code_of(code_.get()), reinterpret_cast<PCRE2_SPTR>(path.data()), path.size(), 0, options | PCRE2_ANCHORED,
                                static_cast<pcre2_match_data*>(match), limits());
  if (found >= 0) return true;
  if (found == PCRE2_ERROR_NOMATCH) return false;
  fail(key_, "the expression " + expression_ + " takes too long on " + path, "an expression that matches without much backtracking",
       "write it more simply, or list the names");
}

bool PeftRegex::matches(const std::string& path) const { return search(path, PCRE2_ENDANCHORED, match_data(code_.get()).get()); }

std::optional<int64_t> PeftRegex::number(const std::string& path) const {
  const auto match = match_data(code_.get());
  if (!search(path, 0, match.get())) return std::nullopt;
  const int group = pcre2_substring_number_from_name(code_of(code_.get()), reinterpret_cast<PCRE2_SPTR>("number"));
  if (group < 0) return std::nullopt;
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get()) + 2 * group;
  if (ends[0] == PCRE2_UNSET) return std::nullopt;
  int64_t value = 0;
  const auto read = std::from_chars(path.data() + ends[0], path.data() + ends[1], value);
  return read.ec == std::errc() ? std::optional(value) : std::nullopt;
}

}  // namespace tessera
