#include "core/shown.h"

#include <algorithm>
#include <cctype>
#include <cstdint>

#include "core/text.h"

namespace tessera {
namespace {

bool is_letter(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-'; }
bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)); }

// How the tokens of well-known services begin, and how many characters follow at least.
struct TokenForm {
  std::string_view begin;
  size_t least;
  bool breaks = false;  // what follows may have '-' and '_'
};
constexpr TokenForm token_forms[] = {
    {"hf_", 20},        {"api_org_", 20}, {"sk-", 32},          {"sk-proj-", 20, true}, {"sk-ant-", 20, true},
    {"ghp_", 20},       {"gho_", 20},     {"ghs_", 20},         {"ghu_", 20},           {"github_pat_", 20, true},
    {"AIza", 30, true}, {"AKIA", 16},     {"glpat-", 16, true}, {"xoxb-", 16, true},    {"xoxp-", 16, true}};

// Names of models and files have words; a token has digits or capitals among its letters.
bool is_token(std::string_view word) {
  const auto telling = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) || std::isupper(static_cast<unsigned char>(c)); };
  for (const TokenForm& form : token_forms) {
    if (!starts_with(word, form.begin) || word.size() < form.begin.size() + form.least) continue;
    const std::string_view rest = word.substr(form.begin.size());
    if ((form.breaks || rest.find_first_of("-_") == rest.npos) && std::any_of(rest.begin(), rest.end(), telling)) return true;
  }
  return false;
}

bool names_secret(std::string_view name) {
  const std::string plain = replace_all(lower(name), "-", "_");
  return ends_with(plain, "token") || ends_with(plain, "secret") || ends_with(plain, "password") || ends_with(plain, "api_key") ||
         ends_with(plain, "apikey");
}

// The special tokens of a tokenizer are called so, too, and are short words in brackets.
bool is_value(std::string_view value) { return value.size() >= 8 && value.find_first_of("<>[]|") == value.npos; }

struct Span {
  size_t begin = 0, end = 0;
};

size_t end_of(std::string_view text, size_t at, bool (*inside)(char)) {
  while (at < text.size() && inside(text[at])) ++at;
  return at;
}

// The next secret from `at` on; empty at the end of the text when there is none.
Span next_secret(std::string_view text, size_t at) {
  while (at < text.size()) {
    const size_t begin = at, end = end_of(text, at, is_letter);
    if (end == begin) {
      // scheme://user:password@host
      if (text.substr(at, 3) == "://") {
        const size_t stop = end_of(text, at + 3, [](char c) { return !is_space(c) && c != '/' && c != '"'; });
        const std::string_view place = text.substr(at + 3, stop - at - 3);
        const size_t host = place.rfind('@'), colon = place.find(':');
        if (host != place.npos && colon != place.npos && colon + 1 < host) return {at + 3 + colon + 1, at + 3 + host};
      }
      ++at;
      continue;
    }
    if (is_token(text.substr(begin, end - begin))) return {begin, end};
    at = end;
    if (end == text.size() || text[end] != '=' || !names_secret(text.substr(begin, end - begin))) continue;
    const size_t stop = end_of(text, end + 1, [](char c) { return !is_space(c) && c != '"' && c != '\'' && c != ','; });
    if (is_value(text.substr(end + 1, stop - end - 1))) return {end + 1, stop};
  }
  return {text.size(), text.size()};
}

size_t whole_character(std::string_view text, size_t at) {
  while (at > 0 && at < text.size() && (uint8_t(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

}  // namespace

bool has_secret(std::string_view text) { return next_secret(text, 0).begin < text.size(); }

std::string without_secrets(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Span secret = next_secret(text, at);
    out += text.substr(at, secret.begin - at);
    if (secret.begin < text.size()) out += "***";
    at = secret.end;
  }
  return out;
}

std::string shown(std::string_view text, size_t most) {
  if (text.size() > most) {
    const size_t head = whole_character(text, most / 2), tail = whole_character(text, text.size() - most / 2);
    return shown(text.substr(0, head), most) + str(" ... (", tail - head, " bytes) ... ") + shown(text.substr(tail), most);
  }
  constexpr char digits[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : without_secrets(text)) {
    const bool control = (uint8_t(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
    if (control)
      out += {'\\', 'x', digits[uint8_t(c) >> 4], digits[uint8_t(c) & 15]};
    else
      out += c;
  }
  return out;
}

}  // namespace tessera
