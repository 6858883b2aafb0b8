#include <algorithm>

#include "data/tokenizer_pipeline.h"

namespace tessera::tokenizing {

void AddedTokens::Trie::insert(std::string_view text, int32_t token) {
  if (nodes_.empty()) nodes_.emplace_back();
  int32_t node = 0;
  for (char byte : text) {
    int32_t next = child_of(node, byte);
    if (next < 0) {
      next = int32_t(nodes_.size());
      nodes_.push_back({byte, -1, nodes_[node].child, -1});
      nodes_[node].child = next;
      if (node == 0) first_[uint8_t(byte)] = next;
    }
    node = next;
  }
  if (nodes_[node].token < 0) nodes_[node].token = token;
}

int32_t AddedTokens::Trie::child_of(int32_t node, char byte) const {
  int32_t child = nodes_[node].child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].sibling;
  return child;
}

bool AddedTokens::Trie::longest_at(std::string_view text, size_t at, size_t& end, int32_t& token) const {
  token = -1;
  for (int32_t node = first_[uint8_t(text[at])]; node > 0; node = child_of(node, text[at])) {
    ++at;
    if (nodes_[node].token >= 0) token = nodes_[node].token, end = at;
    if (at == text.size()) break;
  }
  return token >= 0;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const std::vector<Normalizer>& normalizers) : tokens_(std::move(tokens)) {
  word_.emplace("\\w", "added token");
  space_.emplace("\\s", "added token");
  for (size_t i = 0; i < tokens_.size(); ++i) {
    AddedToken& token = tokens_[i];
    by_id_.emplace(token.id, i);
    by_content_.emplace(token.content, token.id);
    token.spelling = token.normalized ? tokenizing::normalized(token.content, normalizers) : token.content;
    token.skipped = token.special && token.spelling == token.content;
    if (!token.spelling.empty()) (token.normalized ? normalized_ : raw_).insert(token.spelling, int32_t(i));
  }
}

// The rules of find_matches in huggingface/tokenizers: a token that may not stand there hides its text from the others.
std::vector<Section> AddedTokens::split(std::string_view text, const Trie& trie) const {
  std::vector<Section> out;
  size_t done = 0;
  const auto step_back = [&](size_t at) {
    do --at;
    while (at > 0 && (uint8_t(text[at]) & 0xC0) == 0x80);
    return at;
  };
  const auto step = [&](size_t at) {
    do ++at;
    while (at < text.size() && (uint8_t(text[at]) & 0xC0) == 0x80);
    return at;
  };
  for (size_t at = 0; at < text.size() && !trie.empty();) {
    size_t end = 0;
    int32_t index = -1;
    if (!trie.longest_at(text, at, end, index)) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = at, stop = end;
    at = end;
    if (token.single_word) {
      const bool word_before = begin > 0 && word_->matches_at(text, step_back(begin));
      if (word_before || (stop < text.size() && word_->matches_at(text, stop))) continue;
    }
    if (token.lstrip)
      while (begin > done && space_->matches_at(text, step_back(begin))) begin = step_back(begin);
    if (token.rstrip)
      while (stop < text.size() && space_->matches_at(text, stop)) stop = step(stop);
    if (done < begin) out.push_back({{done, begin}, -1});
    out.push_back({{begin, stop}, token.id});
    done = stop;
  }
  if (done < text.size()) out.push_back({{done, text.size()}, -1});
  return out;
}

const AddedToken* AddedTokens::find(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

int32_t AddedTokens::id_of(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found == by_content_.end() ? -1 : found->second;
}

int32_t AddedTokens::end_id() const {
  int32_t end = 0;
  for (const AddedToken& token : tokens_) end = std::max(end, token.id + 1);
  return end;
}

}  // namespace tessera::tokenizing
