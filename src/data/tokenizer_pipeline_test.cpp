#include "data/tokenizer_pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer_unicode.h"

namespace tessera::tokenizing {
namespace {

using Texts = std::vector<std::string>;

Texts words_of(const std::string& text, const std::vector<PreTokenizer>& steps, bool at_start = true) {
  Words words{text, {{0, text.size()}}, at_start};
  pre_tokenize(words, steps);
  Texts out;
  for (const Span& span : words.spans) out.push_back(words.text.substr(span.begin, span.end - span.begin));
  return out;
}

Pattern regex(const std::string& pattern) { return {"", Regex(pattern, "test")}; }

template <class Step, class Variant>
std::vector<Variant> only(Step step) {
  std::vector<Variant> steps;
  steps.push_back(std::move(step));
  return steps;
}

Texts split(const std::string& text, Pattern pattern, Behavior behavior, bool invert = false) {
  return words_of(text, only<SplitAt, PreTokenizer>({std::move(pattern), behavior, invert}));
}

// The table of huggingface/tokenizers' documentation of SplitDelimiterBehavior.
TEST(Split, BehavesAsDocumented) {
  const std::string text = "the-final--countdown";
  for (const bool as_regex : {false, true}) {
    const auto dash = [&] { return as_regex ? regex("-") : Pattern{"-", std::nullopt}; };
    EXPECT_EQ(split(text, dash(), Behavior::removed), (Texts{"the", "final", "countdown"}));
    EXPECT_EQ(split(text, dash(), Behavior::isolated), (Texts{"the", "-", "final", "-", "-", "countdown"}));
    EXPECT_EQ(split(text, dash(), Behavior::merged_with_previous), (Texts{"the-", "final-", "-", "countdown"}));
    EXPECT_EQ(split(text, dash(), Behavior::merged_with_next), (Texts{"the", "-final", "-", "-countdown"}));
    EXPECT_EQ(split(text, dash(), Behavior::contiguous), (Texts{"the", "-", "final", "--", "countdown"}));
  }
  EXPECT_EQ(split("a1b", regex("[a-z]"), Behavior::removed, true), (Texts{"a", "b"}));
}

TEST(Metaspace, PrependsAlwaysFirstOrNever) {
  const auto words = [](PrependScheme scheme, bool split, bool at_start) {
    return words_of("a b", only<Metaspace, PreTokenizer>({"_", scheme, split}), at_start);
  };
  EXPECT_EQ(words(PrependScheme::always, true, false), (Texts{"_a", "_b"}));
  EXPECT_EQ(words(PrependScheme::first, true, true), (Texts{"_a", "_b"}));
  EXPECT_EQ(words(PrependScheme::first, false, false), (Texts{"a_b"}));
  EXPECT_EQ(words(PrependScheme::never, true, true), (Texts{"a", "_b"}));
}

TEST(Regex, WhiteSpaceAndWordsAreUnicode) {
  EXPECT_EQ(split("a\xC2\x85"
                  "b",
                  regex("\\s"), Behavior::removed),
            (Texts{"a", "b"}))
      << "U+0085";
  EXPECT_EQ(split("a\xE1\xA0\x8E"
                  "b",
                  regex("\\s"), Behavior::removed)
                .size(),
            1u)
      << "U+180E is no white space since Unicode 6.3";
  EXPECT_EQ(split("n\xCC\x83o!", regex("\\w+"), Behavior::removed), (Texts{"!"})) << "marks belong to words";
  EXPECT_EQ(split("a!b", regex("[^\\w]"), Behavior::removed), (Texts{"a", "b"}));
  EXPECT_EQ(split("ab", regex("x*"), Behavior::isolated), (Texts{"a", "b"})) << "empty matches";
  EXPECT_EQ(split("]a", regex("[]x]"), Behavior::removed), (Texts{"a"}));
  EXPECT_EQ(split(std::string(1 << 17, 'a'), regex("(?:a|b)+"), Behavior::isolated).size(), 1u) << "beyond the JIT stack";
  for (const char* pattern : {"[a&&b]", "\\h", "[\\W]", "("}) EXPECT_THROW(Regex(pattern, "test"), Error) << pattern;
}

// ---- added tokens

AddedToken token(int32_t id, const std::string& content) {
  AddedToken out;
  out.id = id;
  out.content = content;
  return out;
}

std::string sections(const AddedTokens& added, std::string_view text) {
  std::string out;
  for (const Section& s : added.split_raw(text)) {
    const std::string inside(text.substr(s.span.begin, s.span.end - s.span.begin));
    out += s.id >= 0 ? str("{", s.id, inside, "}") : str("(", inside, ")");
  }
  return out;
}

TEST(AddedTokens, TheLeftmostLongestWins) {
  const AddedTokens added({token(1, "<a>"), token(2, "<a><b>"), token(3, "<b>"), token(4, "a><b")}, {});
  EXPECT_EQ(sections(added, "x<a><b>y<a>"), "(x){2<a><b>}(y){1<a>}");
  EXPECT_EQ(sections(added, "<a<b>"), "(<a){3<b>}");
  EXPECT_EQ(sections(added, ""), "");
  EXPECT_EQ(added.id_of("<b>"), 3);
  EXPECT_EQ(added.end_id(), 5);
}

TEST(AddedTokens, StripWhiteSpaceAndKeepToWords) {
  AddedToken left = token(1, "<l>"), right = token(2, "<r>"), word = token(3, "cat");
  left.lstrip = right.rstrip = word.single_word = true;
  const AddedTokens added({left, right, word}, {});
  EXPECT_EQ(sections(added, "a \xE3\x80\x80<l> b"), "(a){1 \xE3\x80\x80<l>}( b)");
  EXPECT_EQ(sections(added, "a <r> \n b"), "(a ){2<r> \n }(b)");
  EXPECT_EQ(sections(added, "<r> <l>"), "{2<r> }{1<l>}");
  EXPECT_EQ(sections(added,
                     "cat concat cats \xC3\xA9"
                     "cat cat"),
            "{3cat}( concat cats \xC3\xA9"
            "cat ){3cat}");
}

TEST(AddedTokens, NormalizedOnesAreFoundInNormalizedText) {
  AddedToken t = token(1, "e\xCC\x81");
  t.normalized = t.special = true;
  const auto nfc = only<Nfc, Normalizer>({});
  const AddedTokens added({t}, nfc);
  EXPECT_EQ(added.split_raw("e\xCC\x81").size(), 1u);
  EXPECT_EQ(added.split_raw("e\xCC\x81")[0].id, -1);
  EXPECT_EQ(added.split_normalized(normalized("e\xCC\x81", nfc))[0].id, 1);
  EXPECT_EQ(added.find(1)->spelling, "\xC3\xA9");
}

// ---- Unicode

TEST(Utf8, RepairsEachMaximalPart) {
  EXPECT_TRUE(is_utf8("a\xC3\xA9\xF0\x9F\x98\x80"));
  for (const char* bad : {"\x80", "\xC0\x80", "\xC3", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE4\xBD"}) EXPECT_FALSE(is_utf8(bad));
  // The example of Unicode 15, table 3-8.
  EXPECT_EQ(repaired_utf8("\xF0\x80\x80\x41"), "\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(repaired_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFDA");
}

TEST(Nfc, ComposesAndOrders) {
  EXPECT_EQ(composed("plain"), "plain");
  EXPECT_EQ(composed("e\u0301"), "\u00E9");
  EXPECT_EQ(composed("q\u0307\u0323"), "q\u0323\u0307") << "canonical order";
  EXPECT_EQ(composed("\u1E0B\u0323"), "\u1E0D\u0307");
  EXPECT_EQ(composed("\u212B\u2126"), "\u00C5\u03A9") << "singletons";
  EXPECT_EQ(composed("\u0958\u0344"), "\u0915\u093C\u0308\u0301") << "composition exclusions";
  EXPECT_EQ(composed("\u1100\u1161\u11A8\u1100\u1161"), "\uAC01\uAC00") << "Hangul";
  EXPECT_EQ(composed("\uAC00\u11A8\uAC01\u11A8"), "\uAC01\uAC01\u11A8");
  EXPECT_EQ(composed("\u0301e"), "\u0301e") << "a mark without a base";
  EXPECT_EQ(composed("a\u0300\u0301"), "\u00E0\u0301") << "a second mark of the same class is blocked";
  EXPECT_EQ(composed("\U00011131\U00011127"), "\U0001112E") << "supplementary planes";
  EXPECT_EQ(composed("\U0001D15E"), "\U0001D157\U0001D165");
}

// Every composed character comes back from its parts, and NFC of NFC is NFC.
TEST(Nfc, TheTableAgreesWithItself) {
  int composites = 0;
  for (const Decomposition& d : decompositions()) {
    const bool composes = d.second && !(d.code >> 31);
    std::string whole, parts;
    append_code_point(whole, d.code & 0x7FFFFFFF);
    append_code_point(parts, d.first);
    if (d.second) append_code_point(parts, d.second);
    EXPECT_EQ(composed(whole), composed(parts)) << d.code;
    EXPECT_EQ(composed(whole) == whole, composes) << d.code;
    composites += composes;
  }
  EXPECT_EQ(decompositions().size(), 2061u);
  EXPECT_EQ(composites, 941);
}

TEST(ByteLetters, AreAllPrintableAndComeBack) {
  EXPECT_EQ(byte_letters()[' '], "\u0120");
  EXPECT_EQ(byte_letters()['\n'], "\u010A");
  EXPECT_EQ(byte_letters()[0xAD], "\u0143");
  for (int byte = 0; byte < 256; ++byte) {
    size_t at = 0;
    EXPECT_EQ(byte_of_letter(next_code_point(byte_letters()[byte], at)), byte);
  }
  EXPECT_EQ(byte_of_letter(' '), -1);
  EXPECT_EQ(byte_of_letter(0x4E00), -1);
}

// ---- the model: the priority queue against the plain definition

TEST(Bpe, EqualsTheDefinitionOnRandomWords) {
  std::vector<std::string> pieces{"a", "b", "c"};
  uint32_t state = 7;
  const auto random = [&](size_t n) { return size_t((state = state * 1664525u + 1013904223u) >> 8) % n; };
  struct Rule {
    int32_t left, right, id;
  };
  std::vector<Rule> rules;
  while (rules.size() < 60) {
    const int32_t left = int32_t(random(pieces.size())), right = int32_t(random(pieces.size()));
    const std::string joined = pieces[left] + pieces[right];
    if (joined.size() > 9 || std::find(pieces.begin(), pieces.end(), joined) != pieces.end()) continue;
    rules.push_back({left, right, int32_t(pieces.size())});
    pieces.push_back(joined);
  }
  MergeTable table(rules.size());
  for (size_t i = 0; i < rules.size(); ++i) table.set(rules[i].left, rules[i].right, {int32_t(i), rules[i].id});
  const Bpe bpe(Vocabulary(pieces), std::move(table), {});

  for (int repeat = 0; repeat < 300; ++repeat) {
    std::string word;
    std::vector<int32_t> expected, got;
    for (size_t n = 1 + random(120); n > 0; --n) expected.push_back(int32_t(random(3))), word += pieces[expected.back()];
    for (bool joined = true; joined;) {
      joined = false;
      for (const Rule& rule : rules) {
        for (size_t i = 0; i + 1 < expected.size() && !joined; ++i) {
          if (expected[i] != rule.left || expected[i + 1] != rule.right) continue;
          expected[i] = rule.id;
          expected.erase(expected.begin() + ptrdiff_t(i) + 1);
          joined = true;
        }
        if (joined) break;
      }
    }
    Bpe::Scratch scratch;
    bpe.encode(word, scratch, got);
    EXPECT_EQ(got, expected) << word;
  }
}

}  // namespace
}  // namespace tessera::tokenizing
