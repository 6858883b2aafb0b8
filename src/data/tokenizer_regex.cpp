#include "data/tokenizer_regex.h"

#include "core/error.h"
#include "core/text.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace tessera::tokenizing {
namespace {

struct MatchFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using Match = std::unique_ptr<pcre2_match_data, MatchFree>;

struct ContextFree {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

pcre2_code* code_of(void* code) { return static_cast<pcre2_code*>(code); }

// Of one match: a pattern that backtracks without end is an Error, not a hang.
constexpr uint32_t most_steps = 1'000'000, most_kib = 64 * 1024;
constexpr size_t longest_pattern = 16384;

pcre2_match_context* limits() {
  static const auto context = [] {
    std::unique_ptr<pcre2_match_context, ContextFree> made(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(made.get(), most_steps);
    pcre2_set_heap_limit(made.get(), most_kib);
    return made;
  }();
  return context.get();
}

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  fail(where, what, "patterns that Oniguruma and PCRE2 read alike", "use the tokenizer of another model, or write the pattern without it");
}

// One backslash escape. White space and word characters are spelt out, as the two engines differ in U+180E, marks and connectors.
std::string escape(char letter, bool in_class, const std::string& where) {
  const std::string word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
  switch (letter) {
    case 's':
      return "\\p{White_Space}";
    case 'S':
      return "\\P{White_Space}";
    case 'w':
      return in_class ? word : "[" + word + "]";
    case 'W':
      if (in_class) refuse(where, "\\W inside [...] in a regex is not supported yet");
      return "[^" + word + "]";
    case 'h':
    case 'H':
      refuse(where, str("\\", letter, " in a regex is not supported yet"));
    default:
      return {'\\', letter};
  }
}

std::string for_pcre2(const std::string& pattern, const std::string& where) {
  std::string out;
  bool in_class = false;
  size_t class_begin = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      out += escape(pattern[++i], in_class, where);
      continue;
    }
    if (!in_class && c == '[') {
      in_class = true;
      class_begin = i + (pattern.compare(i + 1, 1, "^") == 0 ? 2 : 1);
    } else if (in_class && c == ']' && i > class_begin) {
      in_class = false;
    } else if (in_class && pattern.compare(i, 2, "[:") == 0) {
      const size_t end = pattern.find(":]", i);
      if (end == std::string::npos) refuse(where, "regex " + pattern + ": [: without :]");
      out += pattern.substr(i, end - i);
      i = end;
      out += ':';
      continue;
    } else if (in_class && (c == '[' || pattern.compare(i, 2, "&&") == 0)) {
      refuse(where, "regex " + pattern + ": a set inside [...] is not supported yet");
    }
    out += c;
  }
  return out;
}

}  // namespace

void Regex::Free::operator()(void* code) const { pcre2_code_free(code_of(code)); }

Regex::Regex(const std::string& pattern, const std::string& where) {
  if (pattern.size() > longest_pattern)
    fail(where, str("a regex of ", pattern.size(), " bytes"), str("up to ", longest_pattern), "check the file");
  const std::string text = for_pcre2(pattern, where);
  int error = 0;
  PCRE2_SIZE at = 0;
  // MULTILINE: ^ and $ are at every line in Oniguruma's Ruby syntax.
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), options, &error, &at, nullptr));
  if (!code_) {
    char words[256] = "";
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(words), sizeof words);
    fail(where, str("regex ", pattern, ": ", words), "a regular expression", "check the file");
  }
  pcre2_jit_compile(code_of(code_.get()), PCRE2_JIT_COMPLETE);  // without JIT, matching is only slower
}

namespace {

bool search(const pcre2_code* code, std::string_view text, size_t from, uint32_t options, pcre2_match_data* match) {
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  options |= PCRE2_NO_UTF_CHECK;
  int found = pcre2_match(code, subject, text.size(), from, options, match, limits());
  if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = pcre2_match(code, subject, text.size(), from, options | PCRE2_NO_JIT, match, limits());
  if (found < 0 && found != PCRE2_ERROR_NOMATCH)
    fail("tokenizer", str("a regex gave up on a text of ", text.size(), " bytes (PCRE2 error ", found, ")"), "shorter runs of one kind",
         "split the text");
  return found >= 0;
}

}  // namespace

void Regex::find_all(std::string_view text, std::vector<Span>& found) const {
  const pcre2_code* code = code_of(code_.get());
  const Match match(pcre2_match_data_create(1, nullptr));
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
  for (size_t from = 0; from <= text.size() && search(code, text, from, 0, match.get());) {
    if (ends[0] < from || ends[1] < ends[0])
      fail("tokenizer", "a regex moves the start of its match (\\K) behind its end", "matches from left to right", "use another tokenizer");
    found.push_back({ends[0], ends[1]});
    from = ends[1];
    if (ends[0] != ends[1]) continue;
    for (++from; from < text.size() && (uint8_t(text[from]) & 0xC0) == 0x80;) ++from;
  }
}

bool Regex::matches_at(std::string_view text, size_t at) const {
  const Match match(pcre2_match_data_create(1, nullptr));
  return search(code_of(code_.get()), text, at, PCRE2_ANCHORED, match.get());
}

}  // namespace tessera::tokenizing
