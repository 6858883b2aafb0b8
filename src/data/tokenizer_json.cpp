#include "data/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer_lists.h"
#include "io/file.h"

namespace tessera::tokenizing {
namespace {

using nlohmann::json;

constexpr int kDeepest = 8;                   // Sequences inside Sequences
constexpr int64_t kHoles = int64_t(1) << 20;  // ids without a token, at most

constexpr char kGpt2Split[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Runs `read` on the text of the file; JSON errors become ours.
template <class F>
auto with_text(const std::string& path, F&& read) {
  try {
    return read(read_file(path));
  } catch (const json::exception& e) {
    fail(path, e.what(), str("the JSON that Hugging Face libraries write to ", file_name(path)), "copy or download the file again");
  }
}

// Runs `read` on the parsed file.
template <class F>
auto with_json(const std::string& path, F&& read) {
  return with_text(path, [&](const std::string& text) { return read(json::parse(text)); });
}

int32_t token_id(int64_t id, const std::string& token, const std::string& path) {
  if (id >= 0 && id < Vocabulary::kMostIds) return int32_t(id);
  fail(path, str("the token ", token, " has the id ", id), str("0 to ", Vocabulary::kMostIds - 1), "copy or download the file again");
}

// Reads the parts of tokenizer.json; knows where it is for messages.
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {}

  std::vector<Normalizer> normalizers(const json& root) const;
  std::vector<PreTokenizer> pre_tokenizers(const json& root) const;
  std::optional<std::vector<Decoder>> decoders(const json& root) const;
  void post_processor(const json& root, Pipeline&) const;
  Bpe model(const TokenizerFile&) const;
  std::vector<AddedToken> added_tokens(const json& root, const Vocabulary&) const;

 private:
  [[noreturn]] void unsupported(const std::string& what, const std::string& allowed) const {
    fail(path_, what + " is not supported yet", allowed, "use a model whose tokenizer needs only these");
  }
  [[noreturn]] void wrong(const std::string& what, const std::string& allowed) const {
    fail(path_, what, allowed, "copy or download the file again");
  }
  // Calls `add` with every step of a component, Sequences opened; null has none.
  template <class F>
  void for_steps(const json& part, const char* list, F&& add, int depth = 0) const {
    if (part.is_null()) return;
    if (depth > kDeepest) unsupported(str("a Sequence inside ", depth, " others"), str("up to ", kDeepest));
    const std::string type = part.at("type");
    if (type != "Sequence") return add(part, type);
    for (const json& step : part.at(list)) for_steps(step, list, add, depth + 1);
  }
  Pattern pattern(const json&) const;
  Replace replace(const json& step) const { return {pattern(step.at("pattern")), step.at("content").get<std::string>()}; }
  Behavior behavior(const std::string& name) const;
  PrependScheme prepend_scheme(const json& step) const;
  void template_ids(const json& step, Pipeline&) const;
  Vocabulary vocabulary(const TokenizerFile&) const;
  MergeTable merges(const TokenizerFile&, const Vocabulary&) const;
  int32_t merge_part(const Vocabulary&, std::string_view piece, size_t rank) const;
  int32_t id(const json& value, const std::string& token) const { return token_id(whole_number(value), token, path_); }
  Strip strip(const json& step) const;

  std::string path_;
};

const json& child(const json& object, const char* key) {
  static const json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

bool flag(const json& object, const char* key, bool otherwise = false) {
  const json& value = child(object, key);
  return value.is_null() ? otherwise : value.get<bool>();
}

std::string text_or_empty(const json& value) { return value.is_null() ? "" : value.get<std::string>(); }

Pattern Reader::pattern(const json& value) const {
  if (value.contains("String")) return {value["String"], std::nullopt};
  return {"", Regex(value.at("Regex").get<std::string>(), path_)};
}

std::vector<Normalizer> Reader::normalizers(const json& root) const {
  std::vector<Normalizer> out;
  for_steps(child(root, "normalizer"), "normalizers", [&](const json& step, const std::string& type) {
    if (type == "Prepend")
      out.push_back(Prepend{step.at("prepend")});
    else if (type == "Replace")
      out.push_back(replace(step));
    else if (type == "NFC")
      out.push_back(Nfc{});
    else if (type == "ByteLevel")
      out.push_back(ByteLetters{});
    else
      unsupported("normalizer " + type, "Prepend, Replace, NFC, ByteLevel, Sequence");
  });
  return out;
}

Behavior Reader::behavior(const std::string& name) const {
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  wrong("Split with behavior " + name, "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
}

// Files of older libraries have add_prefix_space instead.
PrependScheme Reader::prepend_scheme(const json& step) const {
  const std::string name = text_or_empty(child(step, "prepend_scheme"));
  if (name.empty()) return flag(step, "add_prefix_space", true) ? PrependScheme::always : PrependScheme::never;
  if (name == "always") return PrependScheme::always;
  if (name == "first") return PrependScheme::first;
  if (name == "never") return PrependScheme::never;
  wrong("Metaspace with prepend_scheme " + name, "always, first, never");
}

std::vector<PreTokenizer> Reader::pre_tokenizers(const json& root) const {
  std::vector<PreTokenizer> out;
  for_steps(child(root, "pre_tokenizer"), "pretokenizers", [&](const json& step, const std::string& type) {
    if (type == "ByteLevel") {
      if (flag(step, "add_prefix_space", true)) out.push_back(PrefixSpace{});
      if (flag(step, "use_regex", true)) out.push_back(SplitAt{{"", Regex(kGpt2Split, path_)}, Behavior::isolated, false});
      out.push_back(ByteLetters{});
    } else if (type == "Split") {
      out.push_back(SplitAt{pattern(step.at("pattern")), behavior(step.at("behavior")), flag(step, "invert")});
    } else if (type == "Digits") {
      const Behavior each = flag(step, "individual_digits") ? Behavior::isolated : Behavior::contiguous;
      out.push_back(SplitAt{{"", Regex("\\p{N}", path_)}, each, false});
    } else if (type == "Metaspace") {
      out.push_back(Metaspace{step.at("replacement"), prepend_scheme(step), flag(step, "split", true)});
    } else {
      unsupported("pre_tokenizer " + type, "ByteLevel, Split, Digits, Metaspace, Sequence");
    }
  });
  return out;
}

Strip Reader::strip(const json& step) const {
  const std::string content = step.at("content");
  const int64_t start = whole_number(step.at("start")), stop = whole_number(step.at("stop"));
  if (content.empty() || std::min(start, stop) < 0 || std::max(start, stop) > INT32_MAX)
    wrong(str("Strip of \"", content, "\" with start ", start, ", stop ", stop), "a character, and two numbers from 0");
  return {content, int(start), int(stop)};
}

std::optional<std::vector<Decoder>> Reader::decoders(const json& root) const {
  const json& part = child(root, "decoder");
  if (part.is_null()) return std::nullopt;
  std::vector<Decoder> out;
  for_steps(part, "decoders", [&](const json& step, const std::string& type) {
    if (type == "ByteLevel")
      out.push_back(FromByteLetters{});
    else if (type == "ByteFallback")
      out.push_back(FromByteFallback{});
    else if (type == "Replace")
      out.push_back(replace(step));
    else if (type == "Fuse")
      out.push_back(Fuse{});
    else if (type == "Strip")
      out.push_back(strip(step));
    else if (type == "Metaspace")
      out.push_back(FromMetaspace{step.at("replacement"), prepend_scheme(step) != PrependScheme::never});
    else
      unsupported("decoder " + type, "ByteLevel, ByteFallback, Replace, Fuse, Strip, Metaspace, Sequence");
  });
  return out;
}

void Reader::template_ids(const json& step, Pipeline& out) const {
  bool behind = false;
  for (const json& item : step.at("single")) {
    if (item.contains("Sequence")) {
      behind = true;
      continue;
    }
    const std::string name = item.at("SpecialToken").at("id");
    auto& ids = behind ? out.suffix : out.prefix;
    for (const json& value : step.at("special_tokens").at(name).at("ids")) ids.push_back(id(value, name));
  }
  if (!behind) wrong("TemplateProcessing without the sequence A", "a template with the text in it");
}

void Reader::post_processor(const json& root, Pipeline& out) const {
  bool found = false;
  for_steps(child(root, "post_processor"), "processors", [&](const json& step, const std::string& type) {
    if (type == "ByteLevel") return;  // moves offsets only
    if (type != "TemplateProcessing") unsupported("post_processor " + type, "TemplateProcessing, ByteLevel, Sequence");
    if (std::exchange(found, true)) unsupported("a second TemplateProcessing", "one TemplateProcessing");
    template_ids(step, out);
  });
}

Vocabulary Reader::vocabulary(const TokenizerFile& file) const {
  const auto list = file.vocabulary();
  int32_t size = 0;
  for (const auto& [piece, id] : list) size = std::max(size, token_id(id, std::string(piece), path_) + 1);
  if (size > int64_t(list.size()) + kHoles)
    wrong(str(list.size(), " tokens have ids up to ", size - 1), str("at most ", kHoles, " ids without a token"));
  std::vector<std::string> pieces(static_cast<size_t>(size));
  for (const auto& [piece, id] : list) pieces[size_t(id)] = piece;
  return Vocabulary(std::move(pieces));
}

int32_t Reader::merge_part(const Vocabulary& vocabulary, std::string_view piece, size_t rank) const {
  const int32_t id = vocabulary.find(piece);
  if (id < 0) wrong(str("merge ", rank, " needs the token \"", piece, "\", which the vocabulary has not"), "merges of known tokens");
  return id;
}

MergeTable Reader::merges(const TokenizerFile& file, const Vocabulary& vocabulary) const {
  const std::vector<MergeText> list = file.merges();
  MergeTable table(list.size());
  int32_t rank = 0;
  std::string joined;
  for (MergeText merge : list) {
    if (merge.one_text) {
      const std::string_view text = merge.left;
      if (starts_with(text, "#version")) continue;
      const size_t space = text.find(' ');
      if (space == text.npos || text.find(' ', space + 1) != text.npos)
        wrong(str("merge ", rank, " is \"", text, "\""), "two tokens with one space between");
      merge.left = text.substr(0, space), merge.right = text.substr(space + 1);
    }
    joined.assign(merge.left).append(merge.right);
    const int32_t left = merge_part(vocabulary, merge.left, rank), right = merge_part(vocabulary, merge.right, rank);
    table.set(left, right, {rank, merge_part(vocabulary, joined, rank)});
    ++rank;
  }
  return table;
}

Bpe Reader::model(const TokenizerFile& file) const {
  const json& model = file.rest().at("model");
  const std::string type = child(model, "type").is_null() && file.has_merges() ? "BPE" : text_or_empty(child(model, "type"));
  if (type != "BPE") unsupported("model type " + (type.empty() ? "(none)" : type), "BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!text_or_empty(child(model, key)).empty()) unsupported(str(key, " \"", text_or_empty(child(model, key)), "\""), "null or \"\"");
  const json& dropout = child(model, "dropout");
  if (!dropout.is_null() && dropout.get<double>() != 0) unsupported("BPE dropout", "null or 0");

  Vocabulary vocabulary = this->vocabulary(file);
  MergeTable table = merges(file, vocabulary);
  BpeRules rules{flag(model, "ignore_merges"), flag(model, "byte_fallback"), flag(model, "fuse_unk"), -1};
  const std::string unk = text_or_empty(child(model, "unk_token"));
  if (!unk.empty()) rules.unk = vocabulary.find(unk);
  if (!unk.empty() && rules.unk < 0) wrong("unk_token \"" + unk + "\" is not in the vocabulary", "a token of the vocabulary");
  return Bpe(std::move(vocabulary), std::move(table), rules);
}

AddedToken added_token(const json& value) {
  AddedToken token;
  token.content = value.at("content").get<std::string>();
  token.single_word = flag(value, "single_word");
  token.lstrip = flag(value, "lstrip");
  token.rstrip = flag(value, "rstrip");
  token.special = flag(value, "special");
  token.normalized = flag(value, "normalized", !token.special);
  return token;
}

std::vector<AddedToken> Reader::added_tokens(const json& root, const Vocabulary& vocabulary) const {
  std::vector<AddedToken> out;
  const json& list = child(root, "added_tokens");
  if (list.is_null()) return out;
  for (const json& value : list) {
    AddedToken token = added_token(value);
    if (token.content.empty()) continue;
    const int32_t known = vocabulary.find(token.content);
    token.id = known >= 0 ? known : id(value.at("id"), token.content);
    out.push_back(std::move(token));
  }
  return out;
}

TokenName token_name(const json& root, const char* key) {
  if (!root.contains(key)) return {};
  const json& value = root[key];
  return {true, text_or_empty(value.is_object() ? child(value, "content") : value)};
}

std::optional<bool> choice(const json& root, const char* key) {
  const json& value = child(root, key);
  return value.is_null() ? std::nullopt : std::optional<bool>(value.get<bool>());
}

}  // namespace

Pipeline read_tokenizer_json(const std::string& path) {
  return with_text(path, [&](const std::string& text) {
    const TokenizerFile file(text);
    const json& root = file.rest();
    const Reader reader(path);
    Bpe model = reader.model(file);
    std::vector<AddedToken> added = reader.added_tokens(root, model.vocabulary());
    std::vector<Normalizer> normalizers = reader.normalizers(root);
    AddedTokens found(std::move(added), normalizers);
    Pipeline out{file_name(path),      std::move(found), std::move(normalizers), reader.pre_tokenizers(root), std::move(model), {}, {},
                 reader.decoders(root)};
    reader.post_processor(root, out);
    return out;
  });
}

TokenizerConfig read_tokenizer_config(const std::string& path) {
  if (!file_exists(path)) return {};
  return with_json(path, [&](const json& root) {
    TokenizerConfig out;
    out.bos = token_name(root, "bos_token");
    out.eos = token_name(root, "eos_token");
    out.pad = token_name(root, "pad_token");
    out.add_bos = choice(root, "add_bos_token");
    out.add_eos = choice(root, "add_eos_token");
    const json& added = child(root, "added_tokens_decoder");
    if (added.is_null()) return out;
    for (const auto& [id, value] : added.items()) {
      AddedToken& token = out.added.emplace_back(added_token(value));
      const bool number = !id.empty() && id.size() < 9 && std::all_of(id.begin(), id.end(), [](char c) { return c >= '0' && c <= '9'; });
      token.id = token_id(number ? std::stoi(id) : -1, token.content, path);
    }
    return out;
  });
}

std::vector<AddedToken> read_added_tokens(const std::string& path) {
  if (!file_exists(path)) return {};
  return with_json(path, [&](const json& root) {
    std::vector<AddedToken> out;
    for (const auto& [content, id] : root.items()) {
      AddedToken& token = out.emplace_back();
      token.id = token_id(whole_number(id), content, path);
      token.content = content;
    }
    return out;
  });
}

}  // namespace tessera::tokenizing
