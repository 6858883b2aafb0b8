#include "data/rows_fault.h"

#include <array>
#include <cstdint>

#include "core/text.h"

namespace tessera {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string hex_byte(char c) {
  constexpr char digits[] = "0123456789ABCDEF";
  return {digits[uint8_t(c) >> 4], digits[uint8_t(c) & 15]};
}

std::string show(char c) { return c > ' ' && c < 127 ? str("'", c, "'") : str("byte ", hex_byte(c)); }

// Length of the well-formed UTF-8 sequence at the start of `s`, 0 when there is none. Source: the Unicode Standard, table 3-7.
size_t utf8_length(std::string_view s) {
  const auto at = [&](size_t i) { return i < s.size() ? uint8_t(s[i]) : uint8_t(0); };
  const auto follows = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
  const uint8_t a = at(0), b = at(1);
  if (a < 0x80) return 1;
  if (a < 0xC2 || a > 0xF4 || !follows(1)) return 0;
  if (a < 0xE0) return 2;
  if ((a == 0xE0 && b < 0xA0) || (a == 0xED && b > 0x9F) || !follows(2)) return 0;
  if (a < 0xF0) return 3;
  if ((a == 0xF0 && b < 0x90) || (a == 0xF4 && b > 0x8F) || !follows(3)) return 0;
  return 4;
}

class Finder {
 public:
  explicit Finder(std::string_view text) : text_(text) {}

  // A list of what may come next instead of recursion: depth costs a byte each.
  std::optional<JsonFault> run() {
    want_ = value;
    for (;;) {
      while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
      if (at_ == text_.size()) {
        if (want_ != end) fault("ends before it is complete");
        return fault_;
      }
      step(text_[at_]);
      if (fault_) return fault_;
    }
  }

 private:
  enum Want { value, value_or_close, key, key_or_close, colon, comma_or_close, end };

  bool fault(std::string what) { return fault_at(at_, std::move(what)); }
  bool fault_at(size_t at, std::string what) {
    if (!fault_) fault_ = JsonFault{at, std::move(what)};
    return false;
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  void after_value() { want_ = open_.empty() ? end : comma_or_close; }

  void step(char c) {
    const bool may_close = want_ == value_or_close || want_ == key_or_close || want_ == comma_or_close;
    if (may_close && c == (open_.back() == '{' ? '}' : ']')) {
      open_.pop_back();
      ++at_;
      return after_value();
    }
    switch (want_) {
      case value:
      case value_or_close:
        begin_value(c);
        return;
      case key:
      case key_or_close:
        if (c != '"')
          fault(str(show(c), " where a key in quotes should stand"));
        else if (string())
          want_ = colon;
        return;
      case colon:
        if (c != ':') fault(str(show(c), " where a colon should stand"));
        ++at_;
        want_ = value;
        return;
      case comma_or_close:
        if (c != ',') fault(str(show(c), " where a comma or ", open_.back() == '{' ? "'}'" : "']'", " should stand"));
        ++at_;
        want_ = open_.back() == '{' ? key : value;
        return;
      case end:
        fault(str(show(c), " after the end of the value"));
    }
  }

  void begin_value(char c) {
    if (c == '{' || c == '[') {
      if (open_.size() == json_max_depth) {
        fault_at(0, str("nested deeper than ", json_max_depth, " levels"));
        return;
      }
      open_ += c;
      ++at_;
      want_ = c == '{' ? key_or_close : value_or_close;
    } else if (c == '"' ? string() : c == '-' || is_digit(c) ? number() : word()) {
      after_value();
    }
  }

  bool word() {
    for (std::string_view w : {"true", "false", "null"})
      if (text_.substr(at_, w.size()) == w) return at_ += w.size(), true;
    for (std::string_view w : {"NaN", "Infinity"})
      if (text_.substr(at_, w.size()) == w) return fault(str(w, " is not JSON"));
    return fault(str(show(peek()), " where a value should stand"));
  }

  bool digits() {
    if (!is_digit(peek())) return at_ == text_.size() ? fault("ends inside a number") : fault(str(show(peek()), " inside a number"));
    while (is_digit(peek())) ++at_;
    return true;
  }

  bool number() {
    if (peek() == '-') ++at_;
    if (text_.substr(at_, 8) == "Infinity") return fault("-Infinity is not JSON");
    if (peek() == '0' && is_digit(peek(1))) return fault("a number that starts with 0");
    if (!digits()) return false;
    if (peek() == '.' && (++at_, !digits())) return false;
    if (peek() != 'e' && peek() != 'E') return true;
    ++at_;
    if (peek() == '+' || peek() == '-') ++at_;
    return digits();
  }

  bool string() {
    for (++at_; at_ < text_.size();) {
      const char c = text_[at_];
      if (c == '"') return ++at_, true;
      if (uint8_t(c) < 0x20) return fault(str("a raw control character (", show(c), ") inside a text"));
      if (c == '\\') {
        if (!escape()) return false;
        continue;
      }
      const size_t n = utf8_length(text_.substr(at_));
      if (n == 0) return fault(str("byte ", hex_byte(c), " is not UTF-8 here"));
      at_ += n;
    }
    return fault("ends inside a text");
  }

  // The code unit of the escape \uXXXX at `at`, or -1.
  int code_unit(size_t at) const {
    if (text_.substr(at, 2) != "\\u" || at + 6 > text_.size()) return -1;
    int unit = 0;
    for (size_t i = at + 2; i < at + 6; ++i) {
      const size_t digit = std::string_view("0123456789abcdef").find(char(text_[i] | (is_digit(text_[i]) ? 0 : 0x20)));
      if (digit == std::string_view::npos) return -1;
      unit = unit * 16 + int(digit);
    }
    return unit;
  }

  bool escape() {
    const char c = peek(1);
    if (c != 'u') {
      if (at_ + 1 == text_.size()) return ++at_, fault("ends inside a text");
      if (std::string_view("\"\\/bfnrt").find(c) == std::string_view::npos) return fault(str("unknown escape \\", show(c)));
      return at_ += 2, true;
    }
    const int unit = code_unit(at_);
    if (unit < 0) return fault("\\u without four hexadecimal digits");
    const bool high = unit >= 0xD800 && unit < 0xDC00, low = unit >= 0xDC00 && unit < 0xE000;
    const int second = high ? code_unit(at_ + 6) : 0;
    if (low || (high && (second < 0xDC00 || second > 0xDFFF))) return fault("the escape of half a surrogate pair");
    return at_ += high ? 12 : 6, true;
  }

  std::string_view text_;
  size_t at_ = 0;
  Want want_ = value;
  std::string open_;  // the brackets that are open
  std::optional<JsonFault> fault_;
};

}  // namespace

std::optional<JsonFault> find_json_fault(std::string_view text) { return Finder(text).run(); }

}  // namespace tessera
