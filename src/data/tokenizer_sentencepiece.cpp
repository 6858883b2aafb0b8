// The file is a protocol buffer (sentencepiece_model.proto). We read the pieces and run our own BPE: the library's processor knows
// neither special tokens inside text nor streaming.
#include "data/tokenizer_sentencepiece.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer_unicode.h"
#include "io/file.h"

namespace tessera::tokenizing {
namespace {

constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581

struct Field {
  uint64_t number = 0, value = 0;  // value: of a varint or a fixed field
  std::string_view bytes;          // of a length-delimited field
};

// Goes through the fields of one protocol buffer message.
class Message {
 public:
  Message(std::string_view bytes, const std::string& path) : rest_(bytes), path_(path) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = {tag >> 3, 0, {}};
    switch (tag & 7) {
      case 0:
        field.value = varint();
        return true;
      case 1:
        field.value = fixed(8);
        return true;
      case 2:
        field.bytes = take(varint());
        return true;
      case 5:
        field.value = fixed(4);
        return true;
      default:
        damaged();
    }
  }

 private:
  [[noreturn]] void damaged() const {
    fail(path_, "this is not a sentencepiece model, or it is cut off", "a file that sentencepiece wrote",
         "copy or download the file again");
  }
  std::string_view take(uint64_t count) {
    if (count > rest_.size()) damaged();
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = take(1)[0];
      value |= uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    damaged();
  }
  uint64_t fixed(size_t count) {
    uint64_t value = 0;
    const std::string_view bytes = take(count);
    for (size_t i = 0; i < count; ++i) value |= uint64_t(uint8_t(bytes[i])) << 8 * i;
    return value;
  }

  std::string_view rest_;
  const std::string& path_;
};

enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Piece {
  std::string text;
  float score = 0;
  uint64_t type = kNormal;
};

// What the file says; the defaults are those of the format.
struct Model {
  std::vector<Piece> pieces;
  uint64_t type = 1;  // 1 unigram, 2 BPE, 3 word, 4 char
  int32_t bos = 1, eos = 2;
  bool byte_fallback = false, space_is_suffix = false;
  bool dummy_prefix = true, remove_extra_spaces = true, escape_spaces = true, has_character_map = false;
  std::string normalization;
};

Piece read_piece(Message message) {
  Piece piece;
  for (Field f; message.next(f);) {
    if (f.number == 1) piece.text = f.bytes;
    if (f.number == 2) piece.score = std::bit_cast<float>(uint32_t(f.value));
    if (f.number == 3) piece.type = f.value;
  }
  return piece;
}

void read_trainer(Message message, Model& model) {
  for (Field f; message.next(f);) {
    if (f.number == 3) model.type = f.value;
    if (f.number == 24) model.space_is_suffix = f.value;
    if (f.number == 35) model.byte_fallback = f.value;
    if (f.number == 41) model.bos = int32_t(f.value);
    if (f.number == 42) model.eos = int32_t(f.value);
  }
}

void read_normalizer(Message message, Model& model) {
  for (Field f; message.next(f);) {
    if (f.number == 1) model.normalization = f.bytes;
    if (f.number == 2) model.has_character_map = !f.bytes.empty();
    if (f.number == 3) model.dummy_prefix = f.value;
    if (f.number == 4) model.remove_extra_spaces = f.value;
    if (f.number == 5) model.escape_spaces = f.value;
  }
}

void check(const Model& model, const std::string& path) {
  const auto unsupported = [&](const std::string& what, const std::string& allowed) {
    fail(path, what + " is not supported yet", allowed, "use a model with a tokenizer.json");
  };
  const char* types[] = {"none", "unigram", "BPE", "word", "char"};
  if (model.type != 2) unsupported(str("model type ", model.type < 5 ? types[model.type] : "?"), "BPE");
  if (model.has_character_map) unsupported("the normalization rule " + model.normalization, "identity");
  if (model.remove_extra_spaces) unsupported("remove_extra_whitespaces", "false");
  if (!model.escape_spaces) unsupported("escape_whitespaces false", "true");
  if (model.space_is_suffix) unsupported("treat_whitespace_as_suffix", "false");
  for (const Piece& piece : model.pieces)
    if (piece.type == kUnused) unsupported("an unused piece (" + piece.text + ")", "normal, byte, control, unknown, user-defined pieces");
}

Model read_model(const std::string& path) {
  const std::string bytes = read_file(path);
  Model model;
  Message message(bytes, path);
  for (Field f; message.next(f);) {
    if (f.number == 1) model.pieces.push_back(read_piece({f.bytes, path}));
    if (f.number == 2) read_trainer({f.bytes, path}, model);
    if (f.number == 3) read_normalizer({f.bytes, path}, model);
  }
  if (model.pieces.empty()) fail(path, "no pieces", "a file that sentencepiece wrote", "copy or download the file again");
  check(model, path);
  return model;
}

bool can_merge(const Piece& piece) { return piece.type == kNormal || piece.type == kUserDefined; }

// Sentencepiece joins the pair whose joined piece has the highest score, the leftmost of equals: a rank for each score, the same for
// every way to make a piece.
MergeTable merges_of(const Model& model, const Vocabulary& vocabulary) {
  std::vector<int32_t> order(model.pieces.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return model.pieces[a].score > model.pieces[b].score; });
  struct Found {
    int32_t left, right;
    Merge merge;
  };
  std::vector<Found> found;
  int32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const Piece& piece = model.pieces[order[i]];
    if (i > 0 && piece.score != model.pieces[order[i - 1]].score) ++rank;
    if (!can_merge(piece) || !is_utf8(piece.text)) continue;
    const std::string_view text = piece.text;
    size_t at = 0;
    for (next_code_point(text, at); at < text.size(); next_code_point(text, at)) {
      const int32_t left = vocabulary.find(text.substr(0, at)), right = vocabulary.find(text.substr(at));
      if (left >= 0 && right >= 0 && can_merge(model.pieces[left]) && can_merge(model.pieces[right]))
        found.push_back({left, right, {rank, order[i]}});
    }
  }
  MergeTable table(found.size());
  for (const Found& f : found) table.set(f.left, f.right, f.merge);
  return table;
}

std::vector<AddedToken> added_tokens(const Model& model, std::vector<AddedToken> more) {
  std::vector<AddedToken> out;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    const auto same = [&](const AddedToken& token) { return token.id == int32_t(id); };
    if (std::any_of(more.begin(), more.end(), same)) continue;
    if (piece.type != kControl && piece.type != kUnknown && piece.type != kUserDefined) continue;
    AddedToken& token = out.emplace_back();
    token.id = int32_t(id);
    token.content = piece.text;
    token.special = piece.type != kUserDefined;
  }
  for (AddedToken& token : more) out.push_back(std::move(token));
  return out;
}

}  // namespace

Pipeline read_sentencepiece(const std::string& path, std::vector<AddedToken> added, bool add_bos, bool add_eos) {
  const Model model = read_model(path);
  std::vector<std::string> pieces;
  BpeRules rules{false, model.byte_fallback, true, -1};
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    pieces.push_back(model.pieces[id].text);
    if (model.pieces[id].type == kUnknown) rules.unk = int32_t(id);
  }
  Vocabulary vocabulary(std::move(pieces));
  MergeTable merges = merges_of(model, vocabulary);

  std::vector<Normalizer> normalizers;
  if (model.dummy_prefix) normalizers.push_back(Prepend{kSpace});
  normalizers.push_back(Replace{{" ", std::nullopt}, kSpace});
  std::vector<Decoder> decoders;
  decoders.push_back(Replace{{kSpace, std::nullopt}, " "});
  decoders.push_back(FromByteFallback{});
  decoders.push_back(Fuse{});
  if (model.dummy_prefix) decoders.push_back(Strip{" ", 1, 0});

  AddedTokens tokens(added_tokens(model, std::move(added)), normalizers);
  Pipeline out{
      file_name(path),    std::move(tokens), std::move(normalizers), {}, Bpe(std::move(vocabulary), std::move(merges), rules), {}, {},
      std::move(decoders)};
  const int32_t count = int32_t(model.pieces.size());
  if (model.bos >= 0 && model.bos < count) out.bos = model.bos;
  if (model.eos >= 0 && model.eos < count) out.eos = model.eos;
  if (add_bos && out.bos >= 0) out.prefix = {out.bos};
  if (add_eos && out.eos >= 0) out.suffix = {out.eos};
  return out;
}

}  // namespace tessera::tokenizing
