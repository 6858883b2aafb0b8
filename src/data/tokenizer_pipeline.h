// What surrounds the model in a tokenizer, as data: added tokens, normalizers, pre-tokenizers, decoders (huggingface/tokenizers' names).
// A list of steps is a Sequence. All text is valid UTF-8. Immutable once built, for all threads.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "data/tokenizer_bpe.h"
#include "data/tokenizer_regex.h"

namespace tessera::tokenizing {

// A literal or a regular expression.
struct Pattern {
  std::string literal;
  std::optional<Regex> regex;
  void find_all(std::string_view text, std::vector<Span>& found) const;
};

// ---- normalizers: text to text

struct Prepend {
  std::string text;
};
struct Replace {
  Pattern pattern;
  std::string content;
};
struct Nfc {};
struct ByteLetters {};  // every byte as its letter (byte_letters())
using Normalizer = std::variant<Prepend, Replace, Nfc, ByteLetters>;

std::string normalized(std::string text, const std::vector<Normalizer>&);

// ---- pre-tokenizers: text to words

// Words of one stretch of text between added tokens.
struct Words {
  std::string text;
  std::vector<Span> spans;
  bool at_start = false;  // the first span is the beginning of the whole input
};

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
struct SplitAt {
  Pattern pattern;
  Behavior behavior = Behavior::isolated;
  bool invert = false;
};
struct PrefixSpace {};  // unless the word begins with a space
enum class PrependScheme { always, first, never };
struct Metaspace {
  std::string replacement;
  PrependScheme scheme = PrependScheme::always;
  bool split = true;
};
using PreTokenizer = std::variant<SplitAt, PrefixSpace, ByteLetters, Metaspace>;

void pre_tokenize(Words&, const std::vector<PreTokenizer>&);

// ---- decoders: pieces to pieces, joined at the end

struct FromByteLetters {};
struct FromByteFallback {};
struct Fuse {};
struct Strip {
  std::string content;  // one character
  int start = 0, stop = 0;
};
struct FromMetaspace {
  std::string replacement;
  bool drops_first = true;
};
using Decoder = std::variant<Replace, FromByteLetters, FromByteFallback, Fuse, Strip, FromMetaspace>;

std::string decoded(std::vector<std::string> pieces, const std::optional<std::vector<Decoder>>&);  // no decoder: joined by spaces

// ---- added tokens: text that is a token whatever the model says

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool single_word = false;  // only between characters that are no word characters
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // looked for after the normalizers, in normalized spelling
  bool special = false;
  // Made by AddedTokens, for decoding (the reference prints a normalized token in its normalized spelling, and then does not skip it):
  std::string spelling;
  bool skipped = false;
};

struct Section {
  Span span;
  int32_t id = -1;  // -1: text between added tokens
};

class AddedTokens {
 public:
  AddedTokens() = default;
  AddedTokens(std::vector<AddedToken>, const std::vector<Normalizer>&);

  std::vector<Section> split_raw(std::string_view text) const { return split(text, raw_); }
  std::vector<Section> split_normalized(std::string_view text) const { return split(text, normalized_); }
  const AddedToken* find(int32_t id) const;       // nullptr: none
  int32_t id_of(std::string_view content) const;  // -1: none
  int32_t end_id() const;                         // highest id + 1, 0 when empty

 private:
  // Finds the leftmost, and there the longest, of many texts. Node 0 is the root.
  class Trie {
   public:
    void insert(std::string_view text, int32_t token);
    bool longest_at(std::string_view text, size_t at, size_t& end, int32_t& token) const;
    bool empty() const { return nodes_.empty(); }

   private:
    struct Node {
      char byte = 0;
      int32_t child = -1, sibling = -1, token = -1;
    };
    int32_t child_of(int32_t node, char byte) const;
    std::vector<Node> nodes_;
    std::array<int32_t, 256> first_{};  // child of the root, 0: none
  };
  std::vector<Section> split(std::string_view text, const Trie&) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_map<std::string, int32_t> by_content_;
  Trie raw_, normalized_;
  std::optional<Regex> word_, space_;
};

// ---- all of it

struct Pipeline {
  std::string file;  // "tokenizer.json"
  AddedTokens added;
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;
  Bpe model;
  std::vector<int32_t> prefix, suffix;  // what the post-processor puts around the text
  std::optional<std::vector<Decoder>> decoders;
  int32_t bos = -1, eos = -1;  // as tokenizer.model says
};

}  // namespace tessera::tokenizing
