// Byte-pair encoding of one word: characters become symbols, the pair with the lowest rank is joined (the leftmost of equals), until no
// pair has a rank. Immutable once built, except for a locked cache of words; for all threads.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::tokenizing {

// Pieces and their ids, both ways. Ids may have holes.
class Vocabulary {
 public:
  static constexpr int32_t kMostIds = 1 << 24;
  Vocabulary() = default;
  explicit Vocabulary(std::vector<std::string> pieces);  // index = id; "" = no piece. Of equal pieces the last one is found
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  int32_t find(std::string_view piece) const;  // -1: none
  bool has(int32_t id) const { return id >= 0 && id < size() && !pieces_[id].empty(); }
  const std::string& piece(int32_t id) const { return pieces_[id]; }  // REQUIRES: 0 <= id < size()
  int32_t size() const { return int32_t(pieces_.size()); }            // highest id + 1

 private:
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;
  };
  size_t slot_of(std::string_view piece, uint32_t hash) const;

  std::vector<std::string> pieces_;
  std::vector<Slot> slots_;  // open addressing, at most two thirds full; empty without pieces
};

struct Merge {
  int32_t rank, id;
};

// (left id, right id) -> rank and joined id. Open addressing, at most two thirds full.
class MergeTable {
 public:
  explicit MergeTable(size_t count);  // REQUIRES: at most `count` different pairs are set
  void set(int32_t left, int32_t right, Merge);
  const Merge* find(int32_t left, int32_t right) const;  // nullptr: none

 private:
  struct Slot {
    uint64_t pair = ~uint64_t(0);
    Merge merge{};
  };
  size_t slot_of(uint64_t pair) const;
  size_t mask_;
  std::vector<Slot> slots_;
};

struct BpeRules {
  bool ignore_merges = false;  // a word that is in the vocabulary is that token
  bool byte_fallback = false;  // a character without a token becomes <0xNN> for each byte
  bool fuse_unk = false;       // neighbouring unknown characters are one token
  int32_t unk = -1;            // -1: unknown characters vanish
};

class Bpe {
 public:
  // Memory for one call of the tokenizer, used again for each word.
  struct Scratch {
    std::vector<int32_t> id, before, after;
    std::vector<uint64_t> queue;  // rank, position
  };

  Bpe(Vocabulary, MergeTable, BpeRules);
  Bpe(Bpe&&) noexcept;
  Bpe& operator=(Bpe&&) noexcept;
  ~Bpe();

  // Appends the ids of the word. REQUIRES: valid UTF-8
  void encode(std::string_view word, Scratch&, std::vector<int32_t>& ids) const;
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Cache;
  void split(std::string_view word, std::vector<int32_t>& symbols) const;
  void join(Scratch&, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary_;
  MergeTable merges_;
  BpeRules rules_;
  std::vector<int32_t> letters_;   // code point -> id, below U+10000
  std::vector<int32_t> byte_ids_;  // byte -> id of <0xNN>, -1
  std::unique_ptr<Cache> cache_;
};

// The piece of byte fallback: byte_piece(10) = "<0x0A>".
std::string byte_piece(uint8_t byte);

}  // namespace tessera::tokenizing
