#include "data/tokenizer_bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <functional>
#include <mutex>

#include "data/tokenizer_unicode.h"

namespace tessera::tokenizing {
namespace {

constexpr size_t kLetters = 0x10000;
constexpr size_t kLongestCached = 64;  // bytes; longer words seldom come twice
constexpr size_t kCacheSlots = 1 << 15, kCacheLocks = 64;

uint64_t pair_of(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {
  slots_.resize(std::bit_ceil(pieces_.size() + pieces_.size() / 2 + 2));
  for (size_t id = 0; id < pieces_.size(); ++id) {
    if (pieces_[id].empty()) continue;
    const auto hash = uint32_t(std::hash<std::string_view>{}(pieces_[id]));
    slots_[slot_of(pieces_[id], hash)] = {hash, int32_t(id)};
  }
}

size_t Vocabulary::slot_of(std::string_view piece, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  while (slots_[slot].id >= 0 && (slots_[slot].hash != hash || pieces_[size_t(slots_[slot].id)] != piece)) slot = (slot + 1) & mask;
  return slot;
}

int32_t Vocabulary::find(std::string_view piece) const {
  if (slots_.empty()) return -1;
  return slots_[slot_of(piece, uint32_t(std::hash<std::string_view>{}(piece)))].id;
}

MergeTable::MergeTable(size_t count) : mask_(std::bit_ceil(count + count / 2 + 2) - 1), slots_(mask_ + 1) {}

size_t MergeTable::slot_of(uint64_t pair) const {
  uint64_t hash = pair * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 32;
  size_t slot = hash & mask_;
  while (slots_[slot].pair != pair && slots_[slot].pair != Slot{}.pair) slot = (slot + 1) & mask_;
  return slot;
}

void MergeTable::set(int32_t left, int32_t right, Merge merge) {
  const uint64_t pair = pair_of(left, right);
  slots_[slot_of(pair)] = {pair, merge};
}

const Merge* MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  const Slot& slot = slots_[slot_of(pair)];
  return slot.pair == pair ? &slot.merge : nullptr;
}

// A word has one slot, where the latest word of that hash stays.
struct Bpe::Cache {
  struct Slot {
    std::string word;
    std::vector<int32_t> ids;
  };
  std::array<std::mutex, kCacheLocks> locks;
  std::vector<Slot> slots = std::vector<Slot>(kCacheSlots);

  bool find(size_t hash, std::string_view word, std::vector<int32_t>& ids) {
    const std::lock_guard lock(locks[hash % kCacheLocks]);
    const Slot& slot = slots[hash % kCacheSlots];
    if (slot.word != word) return false;
    ids.insert(ids.end(), slot.ids.begin(), slot.ids.end());
    return true;
  }
  void keep(size_t hash, std::string_view word, std::vector<int32_t>::const_iterator begin, std::vector<int32_t>::const_iterator end) {
    const std::lock_guard lock(locks[hash % kCacheLocks]);
    Slot& slot = slots[hash % kCacheSlots];
    slot.word = word;
    slot.ids.assign(begin, end);
  }
};

Bpe::Bpe(Vocabulary vocabulary, MergeTable merges, BpeRules rules)
    : vocabulary_(std::move(vocabulary)),
      merges_(std::move(merges)),
      rules_(rules),
      letters_(kLetters, -1),
      byte_ids_(256, -1),
      cache_(std::make_unique<Cache>()) {
  for (char32_t c = 0; c < kLetters; ++c) {
    std::string letter;
    append_code_point(letter, c);
    letters_[c] = vocabulary_.find(letter);
  }
  for (int byte = 0; byte < 256 && rules_.byte_fallback; ++byte) byte_ids_[byte] = vocabulary_.find(byte_piece(uint8_t(byte)));
}

Bpe::Bpe(Bpe&&) noexcept = default;
Bpe& Bpe::operator=(Bpe&&) noexcept = default;
Bpe::~Bpe() = default;

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  const bool cached = word.size() <= kLongestCached;
  const size_t hash = cached ? std::hash<std::string_view>{}(word) : 0;
  if (cached && cache_->find(hash, word, ids)) return;
  const size_t before = ids.size();
  const int32_t whole = rules_.ignore_merges ? vocabulary_.find(word) : -1;
  if (whole >= 0) {
    ids.push_back(whole);
  } else {
    split(word, scratch.id);
    join(scratch, ids);
  }
  if (cached) cache_->keep(hash, word, ids.cbegin() + before, ids.cend());
}

// The order of an unknown character and byte tokens behind it follows the reference (huggingface/tokenizers, BPE::merge_word).
void Bpe::split(std::string_view word, std::vector<int32_t>& symbols) const {
  symbols.clear();
  bool unknown = false;  // a fused unknown token waits
  for (size_t at = 0; at < word.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(word, at);
    const std::string_view letter = word.substr(begin, at - begin);
    const int32_t id = c < kLetters ? letters_[c] : vocabulary_.find(letter);
    if (id >= 0) {
      if (unknown) symbols.push_back(rules_.unk);
      unknown = false;
      symbols.push_back(id);
      continue;
    }
    const auto byte_id = [this](char byte) { return byte_ids_[uint8_t(byte)]; };
    if (std::all_of(letter.begin(), letter.end(), [&](char byte) { return byte_id(byte) >= 0; })) {
      for (char byte : letter) symbols.push_back(byte_id(byte));
      continue;
    }
    if (rules_.unk < 0) continue;
    if (unknown && !rules_.fuse_unk) symbols.push_back(rules_.unk);
    unknown = true;
  }
  if (unknown) symbols.push_back(rules_.unk);
}

// scratch.id holds the symbols; they form a list by before and after, and a removed symbol has id -1.
void Bpe::join(Scratch& scratch, std::vector<int32_t>& ids) const {
  std::vector<int32_t>&id = scratch.id, &before = scratch.before, &after = scratch.after;
  std::vector<uint64_t>& queue = scratch.queue;
  const int32_t count = int32_t(id.size());
  before.resize(count);
  after.resize(count);
  queue.clear();
  const auto offer = [&](int32_t left) {
    if (left < 0 || after[left] >= count) return;
    const Merge* merge = merges_.find(id[left], id[after[left]]);
    if (merge) queue.push_back(uint64_t(merge->rank) << 32 | uint32_t(left));
  };
  for (int32_t i = 0; i < count; ++i) before[i] = i - 1, after[i] = i + 1;
  for (int32_t i = 0; i < count; ++i) offer(i);
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  const auto offer_later = [&](int32_t left) {
    const size_t size = queue.size();
    offer(left);
    if (queue.size() > size) std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    const int32_t left = int32_t(uint32_t(top)), right = after[left];
    if (id[left] < 0 || right >= count) continue;
    const Merge* merge = merges_.find(id[left], id[right]);
    if (!merge || uint64_t(merge->rank) != top >> 32) continue;  // one of the two has changed since
    id[left] = merge->id;
    id[right] = -1;
    after[left] = after[right];
    if (after[left] < count) before[after[left]] = left;
    offer_later(before[left]);
    offer_later(left);
  }
  for (int32_t i = 0; i < count; i = after[i]) ids.push_back(id[i]);
}

std::string byte_piece(uint8_t byte) {
  constexpr char digits[] = "0123456789ABCDEF";
  return {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
}

}  // namespace tessera::tokenizing
