// checkpoint.json, written and read. What is read comes from a disk: every value is checked before it is used.
#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "io/json.h"
#include "train/checkpoint_files.h"

namespace tessera {
namespace {

constexpr int64_t most_steps = int64_t(1) << 53;     // whole numbers that every reader of JSON keeps
constexpr int64_t most_elements = int64_t(1) << 50;  // of a tensor
constexpr int64_t most_ranks = 1 << 20;

// One value of the manifest, with its place for messages.
struct Value {
  const Json& json;
  std::string where;

  [[noreturn]] void refuse(const std::string& allowed) const {
    std::string given = json.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (given.size() > 80) given = given.substr(0, 80) + "...";
    fail(where, given, allowed, "resume from an older checkpoint of this run");
  }
  Value at(const std::string& key) const {
    if (!json.is_object()) refuse("an object");
    const auto found = json.find(key);
    if (found == json.end()) fail(where, str("no key \"", key, "\""), "a complete manifest", "resume from an older checkpoint of this run");
    return {*found, str(where, ": ", key)};
  }
  int64_t whole(int64_t least, int64_t most) const {
    const bool fits = json.is_number_unsigned() && json.get<uint64_t>() <= uint64_t(most) && int64_t(json.get<uint64_t>()) >= least;
    if (!fits) refuse(str("a whole number from ", least, " to ", most));
    return json.get<int64_t>();
  }
  std::string text() const {
    if (!json.is_string()) refuse("a text");
    return json.get<std::string>();
  }
  double number() const {
    if (!json.is_number()) refuse("a number");
    return json.get<double>();
  }
  // f(key, value) for each entry.
  template <class F>
  void each(F f) const {
    if (!json.is_object()) refuse("an object");
    for (const auto& [key, value] : json.items()) f(key, Value{value, str(where, ": ", key)});
  }
  std::map<std::string, std::string> texts() const {
    std::map<std::string, std::string> out;
    each([&](const std::string& key, const Value& v) { out[key] = v.text(); });
    return out;
  }
};

std::string hash_of(const Value& v) {
  const std::string text = v.text();
  if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != std::string::npos) v.refuse("64 hexadecimal digits");
  return text;
}

FileFactsByName facts_of(const Value& v, const char* hash) {
  FileFactsByName out;
  v.each([&](const std::string& name, const Value& facts) {
    out[name] = {uint64_t(facts.at("bytes").whole(0, std::numeric_limits<int64_t>::max())), hash_of(facts.at(hash))};
  });
  return out;
}

// The name of a file in the checkpoint's own folder.
void check_file_name(const Value& v, const std::string& name) {
  const bool plain = !name.empty() && name.size() < 256 && name != "." && name != ".." && name != checkpoint_manifest_name &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  if (!plain) v.refuse("the name of a file in the checkpoint's folder");
}

std::vector<int64_t> shape_of(const Value& v) {
  if (!v.json.is_array() || v.json.empty() || v.json.size() > 4) v.refuse("1 to 4 sizes");
  std::vector<int64_t> shape;
  int64_t n = 1;
  for (const Json& d : v.json) {
    shape.push_back(Value{d, v.where}.whole(1, most_elements));
    if (shape.back() > most_elements / n) v.refuse(str("at most ", most_elements, " elements"));
    n *= shape.back();
  }
  return shape;
}

CheckpointTensor tensor_of(const Value& v, const FileFactsByName& files) {
  CheckpointTensor out;
  out.shape = shape_of(v.at("shape"));
  const Value pieces = v.at("pieces");
  if (!pieces.json.is_array() || pieces.json.size() > files.size()) pieces.refuse("at most one piece to a file");
  int64_t reached = 0;
  for (const Json& json : pieces.json) {
    const Value piece{json, pieces.where};
    CheckpointPiece p{piece.at("file").text(), piece.at("begin").whole(0, most_elements), piece.at("end").whole(1, most_elements)};
    if (!files.contains(p.file)) piece.refuse("a file of the list \"files\"");
    if (p.begin != reached || p.end <= p.begin) piece.refuse(str("a piece that begins at ", reached));
    for (const CheckpointPiece& before : out.pieces)
      if (before.file == p.file) piece.refuse("at most one piece to a file");
    reached = p.end;
    out.pieces.push_back(std::move(p));
  }
  if (reached != out.size()) pieces.refuse(str("pieces that cover ", out.size(), " elements"));
  return out;
}

Json json_of(const FileFactsByName& files, const char* hash) {
  Json out = Json::object();
  for (const auto& [name, facts] : files) out[name] = {{"bytes", facts.bytes}, {hash, facts.sha256}};
  return out;
}

Json json_of(const std::map<std::string, CheckpointTensor>& tensors) {
  Json out = Json::object();
  for (const auto& [name, tensor] : tensors) {
    Json pieces = Json::array();
    for (const CheckpointPiece& p : tensor.pieces) pieces.push_back({{"file", p.file}, {"begin", p.begin}, {"end", p.end}});
    out.get_ref<Json::object_t&>().emplace_back(name, Json{{"shape", tensor.shape}, {"pieces", std::move(pieces)}});
  }
  return out;
}

void read_state(const Value& v, CheckpointManifest& m) {
  m.program = v.at("program").text();
  const std::string kind = v.at("kind").text();
  m.sharded = kind == state_dict_kind(true);
  if (!m.sharded && kind != state_dict_kind(false)) v.at("kind").refuse("SHARDED_STATE_DICT or FULL_STATE_DICT");
  m.step = v.at("step").whole(0, most_steps);
  m.skipped_steps = v.at("skipped_steps").whole(0, m.step);
  m.epoch = v.at("epoch").whole(0, most_steps);
  m.window = v.at("window").whole(0, most_steps);
  m.ranks = v.at("ranks").whole(1, most_ranks);
  m.micro_batches = v.at("micro_batches").whole(1, most_steps);
  const Value rng = v.at("rng"), seed = rng.at("seed");
  if (rng.at("kind").text() != "philox counter") rng.refuse("the kind \"philox counter\"");
  if (!seed.json.is_number_unsigned()) seed.refuse("a whole number");
  m.seed = seed.json.get<uint64_t>();
  m.strategy = v.at("strategy").text();
  m.train_type = v.at("train_type").text();
  m.model = v.at("model").text();
  m.epoch_order_sha256 = hash_of(v.at("epoch_order_sha256"));
  m.run = v.at("run").texts();
  m.configuration = v.at("configuration").texts();
  if (!v.json.contains("best")) return;
  m.best_step = v.at("best").at("step").whole(0, most_steps);
  m.best_eval_loss = v.at("best").at("eval_loss").number();
}

}  // namespace

std::string checkpoint_manifest_text(const CheckpointManifest& m) {
  Json json = {{"format", checkpoint_format},
               {"program", m.program},
               {"kind", state_dict_kind(m.sharded)},
               {"step", m.step},
               {"skipped_steps", m.skipped_steps},
               {"epoch", m.epoch},
               {"window", m.window},
               {"ranks", m.ranks},
               {"strategy", m.strategy},
               {"micro_batches", m.micro_batches},
               {"rng", {{"kind", "philox counter"}, {"seed", m.seed}}},
               {"epoch_order_sha256", m.epoch_order_sha256},
               {"train_type", m.train_type},
               {"model", m.model},
               {"run", m.run},
               {"configuration", m.configuration},
               {"base_files", json_of(m.base_files, "sampled_sha256")},
               {"data_files", json_of(m.data_files, "sha256")}};
  if (m.best_step >= 0) json["best"] = {{"step", m.best_step}, {"eval_loss", m.best_eval_loss}};
  if (m.sharded) json["tensors"] = json_of(m.tensors);
  json["files"] = json_of(m.files, "sha256");
  return json.dump(1) + "\n";
}

CheckpointManifest parse_checkpoint_manifest(const std::string& text, const std::string& where) {
  const Json json = parse_json(text, where);
  const Value v{json, where};
  if (v.at("format").json != checkpoint_format)
    fail(where, str("is of format ", v.at("format").json.dump(-1, ' ', false, Json::error_handler_t::replace)),
         str("format ", checkpoint_format), "use the version of tessera that wrote it");
  CheckpointManifest m;
  read_state(v, m);
  m.base_files = facts_of(v.at("base_files"), "sampled_sha256");
  m.data_files = facts_of(v.at("data_files"), "sha256");
  m.files = facts_of(v.at("files"), "sha256");
  for (const auto& [name, facts] : m.files) check_file_name(v.at("files"), name);
  if (!m.sharded) return m;
  v.at("tensors").each([&](const std::string& name, const Value& tensor) { m.tensors[name] = tensor_of(tensor, m.files); });
  return m;
}

}  // namespace tessera
