// UTF-8 and Unicode as the tokenizer needs them: repair, code points, canonical composition (NFC), the byte alphabet of ByteLevel.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tessera::tokenizing {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool is_utf8(std::string_view);
std::string repaired_utf8(std::string_view);  // each maximal invalid part becomes one U+FFFD (Unicode 3.9, "maximal subpart")

// The code point at text[at]; `at` moves behind it. REQUIRES: valid UTF-8, at < size.
char32_t next_code_point(std::string_view text, size_t& at);
void append_code_point(std::string& out, char32_t);

std::string composed(std::string_view text);  // NFC. REQUIRES: valid UTF-8

// The alphabet of byte-level BPE (GPT-2): each byte is a printable character; those that are not printable are U+0100 upwards.
const std::array<std::string, 256>& byte_letters();
int byte_of_letter(char32_t);  // -1: not in the alphabet

// The data of tokenizer_nfc_table.cpp, sorted by code point.
struct Decomposition {
  uint32_t code;           // bit 31: never composed again
  uint32_t first, second;  // second 0: a single character
};
struct CombiningRange {
  uint32_t first, last;
  uint8_t order;  // canonical combining class, not 0
};
std::span<const Decomposition> decompositions();
std::span<const CombiningRange> combining_ranges();

}  // namespace tessera::tokenizing
