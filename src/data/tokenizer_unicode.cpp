#include "data/tokenizer_unicode.h"

#include <algorithm>
#include <bitset>
#include <cassert>
#include <unordered_map>
#include <vector>

namespace tessera::tokenizing {
namespace {

// Length of the well-formed sequence at text[at], or minus the length of the invalid part (Unicode table 3-7).
int sequence_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? uint8_t(text[at + i]) : uint8_t(0); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return -1;
  for (int i = 2; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return -i;
  return length;
}

// Hangul syllables are composed by arithmetic (Unicode 3.12).
constexpr char32_t kSyllable = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr char32_t kVowels = 21, kTails = 28, kSyllables = 19 * kVowels * kTails;

struct Canonical {
  std::unordered_map<uint64_t, char32_t> composites;
  std::bitset<0x1100> pages;  // of 256 code points that canonical forms touch
  Canonical();
};

Canonical::Canonical() {
  const auto touch = [this](char32_t first, char32_t last) {
    for (char32_t page = first >> 8; page <= last >> 8; ++page) pages.set(page);
  };
  for (const Decomposition& d : decompositions()) {
    const char32_t code = d.code & 0x7FFFFFFF;
    touch(code, code);
    if (!d.second) continue;
    touch(d.second, d.second);
    if (code == d.code) composites.emplace(uint64_t(d.first) << 32 | d.second, code);
  }
  for (const CombiningRange& r : combining_ranges()) touch(r.first, r.last);
  touch(kLead, 0x11FF);
  touch(kSyllable, kSyllable + kSyllables - 1);
}

const Canonical& canonical() {
  static const Canonical tables;
  return tables;
}

uint8_t combining_class(char32_t c) {
  const auto ranges = combining_ranges();
  const auto r = std::lower_bound(ranges.begin(), ranges.end(), c, [](const CombiningRange& a, char32_t b) { return a.last < b; });
  return r != ranges.end() && r->first <= c ? r->order : 0;
}

struct Mark {
  char32_t code;
  uint8_t order;
};

void decompose(char32_t c, std::vector<Mark>& out) {
  if (c >= kSyllable && c < kSyllable + kSyllables) {
    const char32_t s = c - kSyllable;
    out.push_back({kLead + s / (kVowels * kTails), 0});
    out.push_back({kVowel + s % (kVowels * kTails) / kTails, 0});
    if (s % kTails) out.push_back({kTail + s % kTails, 0});
    return;
  }
  const auto all = decompositions();
  const auto d = std::lower_bound(all.begin(), all.end(), c, [](const Decomposition& a, char32_t b) { return (a.code & 0x7FFFFFFF) < b; });
  if (d == all.end() || (d->code & 0x7FFFFFFF) != c) return out.push_back({c, combining_class(c)});
  decompose(d->first, out);
  if (d->second) decompose(d->second, out);
}

char32_t composite(char32_t a, char32_t b) {
  if (a - kLead < 19 && b - kVowel < kVowels) return kSyllable + ((a - kLead) * kVowels + (b - kVowel)) * kTails;
  if (a - kSyllable < kSyllables && (a - kSyllable) % kTails == 0 && b > kTail && b < kTail + kTails) return a + (b - kTail);
  const auto found = canonical().composites.find(uint64_t(a) << 32 | b);
  return found == canonical().composites.end() ? 0 : found->second;
}

// Unicode 3.11, D117: the composed marks stay at the front of the list.
void compose(std::vector<Mark>& marks) {
  constexpr size_t none = ~size_t(0);
  size_t kept = 0, starter = none;
  for (const Mark mark : marks) {
    const bool adjacent = starter != none && kept == starter + 1;
    const bool blocked = !adjacent && (kept == 0 || marks[kept - 1].order >= mark.order);
    const char32_t joined = starter != none && !blocked ? composite(marks[starter].code, mark.code) : 0;
    if (joined) {
      marks[starter].code = joined;
      continue;
    }
    if (mark.order == 0) starter = kept;
    marks[kept++] = mark;
  }
  marks.resize(kept);
}

bool is_composed_for_sure(std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return uint8_t(c) < 0xCC; })) return true;  // all below U+0300
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_code_point(text, at);
    if (c >= 0x300 && canonical().pages[c >> 8]) return false;
  }
  return true;
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const int length = sequence_length(text, at);
    if (length < 0) return false;
    at += length;
  }
  return true;
}

std::string repaired_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const int length = sequence_length(text, at);
    out += length > 0 ? text.substr(at, length) : kReplacement;
    at += std::abs(length);
  }
  return out;
}

char32_t next_code_point(std::string_view text, size_t& at) {
  const uint8_t lead = text[at++];
  if (lead < 0x80) return lead;
  int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  char32_t c = lead & (0x3F >> more);
  for (; more > 0; --more) c = c << 6 | (uint8_t(text[at++]) & 0x3F);
  return c;
}

void append_code_point(std::string& out, char32_t c) {
  const auto tail = [&](int shift) { out += char(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xC0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    out += char(0xE0 | c >> 12);
    tail(6), tail(0);
  } else {
    out += char(0xF0 | c >> 18);
    tail(12), tail(6), tail(0);
  }
}

std::string composed(std::string_view text) {
  if (is_composed_for_sure(text)) return std::string(text);
  std::vector<Mark> marks;
  marks.reserve(text.size());
  for (size_t at = 0; at < text.size();) decompose(next_code_point(text, at), marks);
  for (auto run = marks.begin(); run != marks.end();) {
    run = std::find_if(run, marks.end(), [](const Mark& m) { return m.order != 0; });
    const auto end = std::find_if(run, marks.end(), [](const Mark& m) { return m.order == 0; });
    std::stable_sort(run, end, [](const Mark& a, const Mark& b) { return a.order < b.order; });
    run = end;
  }
  compose(marks);
  std::string out;
  out.reserve(text.size());
  for (const Mark& m : marks) append_code_point(out, m.code);
  return out;
}

const std::array<std::string, 256>& byte_letters() {
  static const std::array<std::string, 256> letters = [] {
    std::array<std::string, 256> table;
    char32_t spare = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      append_code_point(table[b], printable ? b : spare++);
    }
    return table;
  }();
  return letters;
}

int byte_of_letter(char32_t letter) {
  static const std::array<int16_t, 0x144> bytes = [] {
    std::array<int16_t, 0x144> table;
    table.fill(-1);
    for (int b = 0; b < 256; ++b) {
      size_t at = 0;
      table[next_code_point(byte_letters()[b], at)] = int16_t(b);
    }
    return table;
  }();
  return letter < bytes.size() ? bytes[letter] : -1;
}

}  // namespace tessera::tokenizing
