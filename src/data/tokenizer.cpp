#include "data/tokenizer.h"

#include <algorithm>

#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer_json.h"
#include "data/tokenizer_sentencepiece.h"
#include "data/tokenizer_unicode.h"
#include "io/file.h"

namespace tessera {

using namespace tokenizing;

namespace {

constexpr char kJson[] = "tokenizer.json", kModel[] = "tokenizer.model";
constexpr const char* kFiles[] = {kJson,        kModel,       "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                                  "vocab.json", "merges.txt", "chat_template.jinja",   "chat_template.json"};

Pipeline read_model_file(const std::string& path, const std::string& folder, const TokenizerConfig& config) {
  auto added = config.added.empty() ? read_added_tokens(folder + "/added_tokens.json") : config.added;
  return read_sentencepiece(path, std::move(added), config.add_bos.value_or(true), config.add_eos.value_or(false));
}

}  // namespace

struct Tokenizer::Impl {
  struct Special {
    int32_t id = -1;
    std::string text;
  };
  Pipeline pipeline;
  Special bos, eos, pad;
  std::vector<std::string> files;

  int32_t id_of(std::string_view piece) const {
    const int32_t added = pipeline.added.id_of(piece);
    return added >= 0 ? added : pipeline.model.vocabulary().find(piece);
  }
  // nullptr: no such id.
  const std::string* piece(int32_t id) const {
    if (const AddedToken* added = pipeline.added.find(id)) return &added->content;
    const Vocabulary& vocabulary = pipeline.model.vocabulary();
    return vocabulary.has(id) ? &vocabulary.piece(id) : nullptr;
  }
  // tokenizer_config.json, else what the model itself says, else special_tokens_map.json.
  Special special(const TokenName& config, int32_t model, const TokenName& map) const {
    if (const std::string* text = config.stated || model < 0 ? nullptr : piece(model)) return {model, *text};
    const TokenName& name = config.stated ? config : map;
    return {name.text.empty() ? -1 : id_of(name.text), name.text};
  }
  void encode_text(std::string_view text, bool at_start, Bpe::Scratch&, std::vector<int32_t>& ids) const;
};

void Tokenizer::Impl::encode_text(std::string_view text, bool at_start, Bpe::Scratch& scratch, std::vector<int32_t>& ids) const {
  const std::string normal = normalized(std::string(text), pipeline.normalizers);
  for (const Section& section : pipeline.added.split_normalized(normal)) {
    if (section.id >= 0) {
      ids.push_back(section.id);
      continue;
    }
    const auto [begin, end] = section.span;
    Words words{normal.substr(begin, end - begin), {{0, end - begin}}, at_start && begin == 0};
    pre_tokenize(words, pipeline.pre_tokenizers);
    for (const Span& word : words.spans)
      pipeline.model.encode(std::string_view(words.text).substr(word.begin, word.end - word.begin), scratch, ids);
  }
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

bool Tokenizer::present(const std::string& folder) { return file_exists(folder + "/" + kJson) || file_exists(folder + "/" + kModel); }

Tokenizer Tokenizer::load(const std::string& path) {
  const bool is_folder = folder_exists(path);
  const std::string folder = is_folder ? path : parent_folder(path);
  if (is_folder && !present(folder))
    fail(path, "no tokenizer in this folder", "a folder with tokenizer.json or tokenizer.model", "download the tokenizer files too");
  const std::string file = !is_folder ? path : folder + "/" + (file_exists(folder + "/" + kJson) ? kJson : kModel);
  const TokenizerConfig config = read_tokenizer_config(folder + "/tokenizer_config.json");
  const TokenizerConfig map = read_tokenizer_config(folder + "/special_tokens_map.json");
  auto impl = std::make_unique<Impl>(
      Impl{ends_with(file, ".model") ? read_model_file(file, folder, config) : read_tokenizer_json(file), {}, {}, {}, {}});
  impl->bos = impl->special(config.bos, impl->pipeline.bos, map.bos);
  impl->eos = impl->special(config.eos, impl->pipeline.eos, map.eos);
  impl->pad = impl->special(config.pad, -1, {});
  for (const char* name : kFiles)
    if (file_exists(folder + "/" + name)) impl->files.push_back(name);
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  std::string repaired;
  if (!is_utf8(text)) text = repaired = repaired_utf8(text);
  const Pipeline& pipeline = impl_->pipeline;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (add_special) ids = pipeline.prefix;
  Bpe::Scratch scratch;
  for (const Section& section : pipeline.added.split_raw(text)) {
    const auto [begin, end] = section.span;
    if (section.id >= 0)
      ids.push_back(section.id);
    else
      impl_->encode_text(text.substr(begin, end - begin), begin == 0, scratch, ids);
  }
  if (add_special) ids.insert(ids.end(), pipeline.suffix.begin(), pipeline.suffix.end());
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::vector<std::string> pieces;
  pieces.reserve(ids.size());
  for (int32_t id : ids) {
    const AddedToken* added = impl_->pipeline.added.find(id);
    if (added && !(skip_special && added->skipped))
      pieces.push_back(added->spelling);
    else if (const std::string* piece = added ? nullptr : impl_->piece(id))
      pieces.push_back(*piece);
  }
  return decoded(std::move(pieces), impl_->pipeline.decoders);
}

std::string Tokenizer::piece(int32_t id) const {
  const std::string* piece = impl_->piece(id);
  return piece ? *piece : "";
}

int32_t Tokenizer::id_of(std::string_view piece) const { return impl_->id_of(piece); }
int32_t Tokenizer::vocab_size() const { return std::max(impl_->pipeline.model.vocabulary().size(), impl_->pipeline.added.end_id()); }
int32_t Tokenizer::bos() const { return impl_->bos.id; }
int32_t Tokenizer::eos() const { return impl_->eos.id; }
int32_t Tokenizer::pad() const { return impl_->pad.id; }
std::string Tokenizer::bos_text() const { return impl_->bos.text; }
std::string Tokenizer::eos_text() const { return impl_->eos.text; }

bool Tokenizer::is_special(int32_t id) const {
  const AddedToken* added = impl_->pipeline.added.find(id);
  return added && added->special;
}

std::string Tokenizer::describe() const {
  std::string out = str(impl_->pipeline.file, ", BPE, ", vocab_size(), " tokens");
  if (bos() >= 0) out += ", BOS " + bos_text();
  if (eos() >= 0) out += ", EOS " + eos_text();
  return out;
}

const std::vector<std::string>& Tokenizer::files() const { return impl_->files; }

}  // namespace tessera
