// Tokenizer: text to ids and back, as tokenizer.json (Hugging Face tokenizers) or tokenizer.model (sentencepiece) say.
// The pipeline of the file is the law: added tokens, normalizer, pre-tokenizer, BPE, post-processor, decoder. Immutable after load;
// one object may be used from several threads.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

class Tokenizer {
 public:
  // A model folder (tokenizer.json, else tokenizer.model; tokenizer_config.json for BOS/EOS/pad) or one of the two files itself.
  // Throws Error naming the file and the part that is not supported.
  static Tokenizer load(const std::string& path);
  static bool present(const std::string& folder);  // the folder has tokenizer.json or tokenizer.model
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // add_special: with what the post-processor adds (BOS, perhaps EOS). Special tokens written in the text are always recognised.
  // Invalid UTF-8 is replaced by U+FFFD.
  std::vector<int32_t> encode(std::string_view text, bool add_special) const;
  std::string decode(const std::vector<int32_t>& ids, bool skip_special) const;
  std::string piece(int32_t id) const;          // the token as the vocabulary spells it
  int32_t id_of(std::string_view piece) const;  // -1 when there is none

  int32_t vocab_size() const;  // highest id + 1, added tokens included
  int32_t bos() const;         // -1 when there is none
  int32_t eos() const;
  int32_t pad() const;  // tokenizer_config's pad_token, else -1
  std::string bos_text() const;
  std::string eos_text() const;
  bool is_special(int32_t id) const;
  std::string describe() const;                   // "tokenizer.json, BPE, 32000 tokens, BOS <s>, EOS </s>"
  const std::vector<std::string>& files() const;  // names in the folder that belong to the tokenizer, to be copied with a trained model

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl>);
  std::unique_ptr<Impl> impl_;
};

// Text as it becomes certain, id by id: prints nothing while the decoded text ends in an incomplete UTF-8 sequence (U+FFFD), else what is
// new. The joined output plus rest() is decode(all ids). Rule: golden/text, "stream".
class TokenStream {
 public:
  TokenStream(const Tokenizer& tokenizer, bool skip_special) : tokenizer_(tokenizer), skip_special_(skip_special) {}
  std::string next(int32_t id);
  std::string rest();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::vector<int32_t> ids_;
  std::string prefix_;
  size_t prefix_index_ = 0;
};

}  // namespace tessera
