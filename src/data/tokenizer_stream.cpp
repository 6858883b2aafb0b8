// The sliding window of huggingface/tokenizers' DecodeStream: ids_ are those since the text before prefix_index_ was printed; prefix_ is
// what they meant then. A window is needed because a piece can read otherwise after another one than alone (leading spaces).
#include "core/text.h"
#include "data/tokenizer.h"
#include "data/tokenizer_unicode.h"

namespace tessera {
namespace {

// The text behind the prefix. Late bytes can turn printed text into U+FFFD: then what the two share counts as printed.
std::string behind(const std::string& text, const std::string& prefix) {
  size_t shared = 0;
  while (shared < text.size() && shared < prefix.size() && text[shared] == prefix[shared]) ++shared;
  while (shared > 0 && shared < text.size() && (uint8_t(text[shared]) & 0xC0) == 0x80) --shared;
  return text.substr(shared);
}

}  // namespace

std::string TokenStream::next(int32_t id) {
  if (prefix_.empty() && !ids_.empty()) {
    const std::string text = tokenizer_.decode(ids_, skip_special_);
    if (!ends_with(text, tokenizing::kReplacement)) {
      prefix_ = text;
      prefix_index_ = ids_.size();
    }
  }
  ids_.push_back(id);
  const std::string text = tokenizer_.decode(ids_, skip_special_);
  if (text.size() <= prefix_.size() || ends_with(text, tokenizing::kReplacement)) return "";
  const std::string printed = behind(text, prefix_);
  ids_.erase(ids_.begin(), ids_.begin() + ptrdiff_t(prefix_index_));
  prefix_index_ = ids_.size();
  prefix_ = tokenizer_.decode(ids_, skip_special_);
  return printed;
}

std::string TokenStream::rest() {
  const std::string text = tokenizer_.decode(ids_, skip_special_);
  const std::string printed = behind(text, prefix_);
  ids_.clear();
  prefix_.clear();
  prefix_index_ = 0;
  return printed;
}

}  // namespace tessera
