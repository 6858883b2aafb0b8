#include "data/tokenizer_pipeline.h"

#include <algorithm>

#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer_unicode.h"

namespace tessera::tokenizing {
namespace {

void find_literal(std::string_view text, std::string_view literal, std::vector<Span>& found) {
  if (literal.empty()) return;
  for (size_t at = text.find(literal); at != text.npos; at = text.find(literal, at + literal.size()))
    found.push_back({at, at + literal.size()});
}

// How large a text may become on its way through the steps of a file. Real steps make one byte four at most.
size_t most_bytes(size_t text) { return 64 * text + (size_t(1) << 20); }

void check_growth(size_t bytes, size_t most) {
  if (bytes > most)
    fail("tokenizer", str("its steps make a text more than ", most, " bytes long"), "steps that make a text at most 64 times as long",
         "use the tokenizer of another model");
}

std::string replaced(std::string_view text, const std::vector<Span>& found, std::string_view content, size_t most) {
  check_growth(text.size() + found.size() * content.size(), most);
  std::string out;
  out.reserve(text.size() + found.size() * content.size());
  size_t at = 0;
  for (const Span& match : found) {
    out += text.substr(at, match.begin - at);
    out += content;
    at = match.end;
  }
  return out += text.substr(at);
}

std::string replaced(std::string_view text, const Pattern& pattern, std::string_view content, size_t most) {
  std::vector<Span> found;
  pattern.find_all(text, found);
  return replaced(text, found, content, most);
}

std::string replaced(std::string_view text, std::string_view literal, std::string_view content, size_t most) {
  std::vector<Span> found;
  find_literal(text, literal, found);
  return replaced(text, found, content, most);
}

void append_letters(std::string& out, std::string_view text) {
  const auto& letters = byte_letters();
  for (char byte : text) out += letters[uint8_t(byte)];
}

struct Normalize {
  std::string& text;
  size_t most;
  void operator()(const Prepend& step) {
    if (!text.empty()) text.insert(0, step.text);
  }
  void operator()(const Replace& step) { text = replaced(text, step.pattern, step.content, most); }
  void operator()(const Nfc&) { text = composed(text); }
  void operator()(const ByteLetters&) {
    std::string letters;
    append_letters(letters, text);
    text = std::move(letters);
  }
};

// The matches and the text between them, in order.
struct Part {
  Span span;
  bool match;
};

std::vector<Part> parts_of(std::string_view text, const SplitAt& step) {
  std::vector<Span> found;
  step.pattern.find_all(text, found);
  std::vector<Part> parts;
  parts.reserve(2 * found.size() + 1);
  size_t at = 0;
  for (const Span& match : found) {
    if (at < match.begin) parts.push_back({{at, match.begin}, step.invert});
    parts.push_back({match, !step.invert});
    at = match.end;
  }
  if (at < text.size()) parts.push_back({{at, text.size()}, step.invert});
  return parts;
}

std::vector<Span> isolated(std::string_view word, const Pattern& pattern) {
  std::vector<Span> found, out;
  pattern.find_all(word, found);
  out.reserve(found.size() + 1);
  size_t at = 0;
  for (const Span& match : found) {
    if (at < match.begin) out.push_back({at, match.begin});
    out.push_back(match);
    at = match.end;
  }
  if (at < word.size()) out.push_back({at, word.size()});
  return out;
}

std::vector<Span> joined(const std::vector<Part>& parts, Behavior behavior) {
  std::vector<Span> out;
  bool before = false;  // the part before was a match
  const auto add = [&](const Part& part, bool with_last) {
    before = part.match;
    if (with_last && !out.empty())
      out.back() = {std::min(out.back().begin, part.span.begin), std::max(out.back().end, part.span.end)};
    else
      out.push_back(part.span);
  };
  switch (behavior) {
    case Behavior::removed:
      for (const Part& p : parts)
        if (!p.match) out.push_back(p.span);
      break;
    case Behavior::isolated:
      for (const Part& p : parts) add(p, false);
      break;
    case Behavior::contiguous:
      for (const Part& p : parts) add(p, p.match == before);
      break;
    case Behavior::merged_with_previous:
      for (const Part& p : parts) add(p, p.match && !before);
      break;
    case Behavior::merged_with_next:
      for (auto p = parts.rbegin(); p != parts.rend(); ++p) add(*p, p->match && !before);
      std::reverse(out.begin(), out.end());
      break;
  }
  return out;
}

// Splits every word; `pieces_of` gives the spans inside a word. Empty ones are dropped.
template <class F>
void split_words(Words& words, F&& pieces_of) {
  std::vector<Span> out;
  out.reserve(words.spans.size());
  bool at_start = words.at_start;
  for (const Span& span : words.spans) {
    const std::string_view word = std::string_view(words.text).substr(span.begin, span.end - span.begin);
    for (const Span& piece : pieces_of(word))
      if (piece.begin < piece.end) out.push_back({span.begin + piece.begin, span.begin + piece.end});
  }
  if (out.empty() || words.spans.empty() || out[0].begin != words.spans[0].begin) at_start = false;
  words.at_start = at_start;
  words.spans = std::move(out);
}

// Writes every word anew: `rewrite(word, first, out)` appends it.
template <class F>
void rewrite_words(Words& words, size_t most, F&& rewrite) {
  std::string text;
  text.reserve(words.text.size() + words.text.size() / 4);
  bool first = words.at_start;
  for (Span& span : words.spans) {
    const size_t begin = text.size();
    rewrite(std::string_view(words.text).substr(span.begin, span.end - span.begin), first, text);
    check_growth(text.size(), most);
    span = {begin, text.size()};
    first = false;
  }
  words.text = std::move(text);
}

struct PreTokenize {
  Words& words;
  size_t most;

  void operator()(const SplitAt& step) {
    if (step.behavior == Behavior::isolated)
      split_words(words, [&](std::string_view word) { return isolated(word, step.pattern); });
    else
      split_words(words, [&](std::string_view word) { return joined(parts_of(word, step), step.behavior); });
  }

  void operator()(const PrefixSpace&) {
    rewrite_words(words, most, [](std::string_view word, bool, std::string& out) {
      if (!starts_with(word, " ")) out += ' ';
      out += word;
    });
  }

  void operator()(const ByteLetters&) {
    rewrite_words(words, most, [](std::string_view word, bool, std::string& out) { append_letters(out, word); });
  }

  void operator()(const Metaspace& step) {
    const std::string& mark = step.replacement;
    rewrite_words(words, most, [&](std::string_view word, bool first, std::string& out) {
      const std::string text = replaced(word, " ", mark, most);
      const bool wanted = step.scheme == PrependScheme::always || (step.scheme == PrependScheme::first && first);
      if (wanted && !starts_with(text, mark)) out += mark;
      out += text;
    });
    if (!step.split) return;
    const SplitAt at_mark{{mark, std::nullopt}, Behavior::merged_with_next, false};
    operator()(at_mark);
  }
};

// ---- decoders

std::string bytes_of_letters(const std::string& piece) {
  std::string bytes;
  for (size_t at = 0; at < piece.size();) {
    const int byte = byte_of_letter(next_code_point(piece, at));
    if (byte < 0) return piece;
    bytes += char(byte);
  }
  return bytes;
}

int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

// The byte of "<0xNN>", else -1.
int fallback_byte(const std::string& piece) {
  if (piece.size() != 6 || !starts_with(piece, "<0x") || piece[5] != '>') return -1;
  return hex(piece[3]) < 0 || hex(piece[4]) < 0 ? -1 : hex(piece[3]) * 16 + hex(piece[4]);
}

std::string concatenated(const std::vector<std::string>& pieces) {
  std::string out;
  for (const std::string& piece : pieces) out += piece;
  return out;
}

struct Decode {
  std::vector<std::string>& pieces;
  size_t most;

  void operator()(const Replace& step) {
    size_t total = 0;
    for (std::string& piece : pieces) {
      piece = replaced(piece, step.pattern, step.content, most - total);
      total += piece.size();
    }
  }
  void operator()(const FromByteLetters&) {
    std::string bytes;
    for (const std::string& piece : pieces) bytes += bytes_of_letters(piece);
    pieces = {repaired_utf8(bytes)};
  }
  void operator()(const FromByteFallback&) {
    std::vector<std::string> out;
    std::string bytes;
    const auto flush = [&] {
      if (is_utf8(bytes) && !bytes.empty())
        out.push_back(bytes);
      else
        out.insert(out.end(), bytes.size(), std::string(kReplacement));
      bytes.clear();
    };
    for (std::string& piece : pieces) {
      const int byte = fallback_byte(piece);
      if (byte >= 0) {
        bytes += char(byte);
        continue;
      }
      flush();
      out.push_back(std::move(piece));
    }
    flush();
    pieces = std::move(out);
  }
  void operator()(const Fuse&) { pieces = {concatenated(pieces)}; }
  void operator()(const Strip& step) {
    for (std::string& piece : pieces) {
      const size_t width = step.content.size();
      std::string_view rest = piece;
      for (int i = 0; i < step.start && starts_with(rest, step.content); ++i) rest.remove_prefix(width);
      for (int i = 0; i < step.stop && ends_with(rest, step.content); ++i) rest.remove_suffix(width);
      piece = std::string(rest);
    }
  }
  void operator()(const FromMetaspace& step) {
    for (size_t i = 0; i < pieces.size(); ++i)
      pieces[i] = replaced(pieces[i], step.replacement, i == 0 && step.drops_first ? "" : " ", most);
  }
};

}  // namespace

void Pattern::find_all(std::string_view text, std::vector<Span>& found) const {
  if (regex)
    regex->find_all(text, found);
  else
    find_literal(text, literal, found);
}

std::string normalized(std::string text, const std::vector<Normalizer>& steps) {
  const size_t most = most_bytes(text.size());
  for (const Normalizer& step : steps) {
    std::visit(Normalize{text, most}, step);
    check_growth(text.size(), most);
  }
  return text;
}

void pre_tokenize(Words& words, const std::vector<PreTokenizer>& steps) {
  const size_t most = most_bytes(words.text.size());
  for (const PreTokenizer& step : steps) std::visit(PreTokenize{words, most}, step);
}

std::string decoded(std::vector<std::string> pieces, const std::optional<std::vector<Decoder>>& steps) {
  if (!steps) return join(pieces, " ");
  size_t total = 0;
  for (const std::string& piece : pieces) total += piece.size();
  for (const Decoder& step : *steps) std::visit(Decode{pieces, most_bytes(total)}, step);
  return concatenated(pieces);
}

}  // namespace tessera::tokenizing
