// Configuration files: YAML in, YAML and JSON out.
#include <yaml-cpp/yaml.h>

#include "cli/config.h"
#include "cli/record.h"
#include "cli/upstream.h"
#include "core/error.h"
#include "core/text.h"
#include "io/file.h"

namespace tessera {
namespace {

constexpr size_t most_bytes = size_t(1) << 20, most_entries = 10'000;
constexpr int most_levels = 8;  // of maps: each adds a part to a name, and no option has so many

class Reader {
 public:
  Reader(const std::string& path, FieldList& fields) : path_(path), fields_(fields) {
    known_ = fields.names();
    for (const auto& name : upstream_names()) known_.push_back(name);
  }

  std::vector<Given> read() {
    const std::string text = read_file(path_);
    if (text.size() > most_bytes) fail(path_, str(text.size(), " bytes"), str("up to ", most_bytes, " bytes"), "name a configuration file");
    try {
      const YAML::Node root = YAML::Load(text);
      if (!root.IsMap()) fail(path_, "holds no names", "a YAML file of lines \"name: value\"", "write one option per line");
      visit(root, "", 1);
    } catch (const YAML::Exception& e) {
      fail(at(e.mark), e.msg, "a YAML file of lines \"name: value\"", "correct this line");
    }
    return std::move(given_);
  }

 private:
  std::string at(const YAML::Mark& mark) const { return mark.is_null() ? path_ : str(path_, " line ", mark.line + 1); }

  // An alias of YAML can stand for any number of others, or for what holds it: what is visited is counted.
  void visit(const YAML::Node& map, const std::string& prefix, int level) {
    for (const auto& entry : map) {
      if (level > most_levels || ++visited_ > most_entries)
        fail(at(entry.first.Mark()), level > most_levels ? str("a map inside ", most_levels, " others") : "too many entries",
             str("up to ", most_levels, " levels and ", most_entries, " entries"), "write one option per line, without aliases");
      if (!entry.first.IsScalar()) fail(at(entry.first.Mark()), "a name that is no text", "lines \"name: value\"", "correct this line");
      const std::string key = entry.first.Scalar();
      Given given;
      given.name = prefix + replace_all(key, "-", "_");
      given.where = str(at(entry.first.Mark()), ": ", prefix.empty() ? key : given.name);
      const bool known = fields_.find(given.name) || find_upstream_flag(given.name);
      if (entry.second.IsMap() && !known) {
        visit(entry.second, given.name + "_", level + 1);
        continue;
      }
      if (!known) unknown_name(given, known_);
      take(std::move(given), entry.second);
    }
  }

  void take(Given given, const YAML::Node& value) {
    const bool is_field = fields_.find(given.name);
    if (value.IsNull() && !is_field) return;
    if (value.IsNull()) fail(given.where, "no value is given", fields_.find(given.name)->allowed(), "write a value, or remove the line");
    if (value.IsMap() && is_field) fail(given.where, "a map is given", fields_.find(given.name)->allowed(), "write one value");
    if (value.IsScalar()) given.values = {value.Scalar()};
    if (value.IsMap()) given.values = {value.size() ? "{...}" : "{}"};
    if (value.IsSequence())
      for (const auto& item : value) given.values.push_back(item.IsScalar() ? item.Scalar() : "[...]");
    if (value.IsSequence() && value.size() == 0 && !is_field) given.values = {"[]"};
    refuse_repeated(given);
    given_.push_back(std::move(given));
  }

  void refuse_repeated(const Given& given) {
    const Field* field = fields_.find(given.name);
    for (const auto& before : given_)
      if (before.name == given.name || (field && field->answers_to(before.name)))
        fail(given.where, str("the same option stands at ", before.where), "each option once", "remove one of the lines");
  }

  const std::string& path_;
  FieldList& fields_;
  std::vector<std::string> known_;
  std::vector<Given> given_;
  size_t visited_ = 0;
};

std::string yaml_value(const Field& f) {
  if (std::holds_alternative<std::string*>(f.place())) return quoted(f.text());
  if (!f.is_list()) return f.text();
  std::string out;
  for (const auto& entry : **std::get_if<std::vector<std::string>*>(&f.place())) out += str(out.empty() ? "" : ", ", quoted(entry));
  return str("[", out, "]");
}

}  // namespace

std::vector<Given> read_config_file(const std::string& path, FieldList& fields) { return Reader(path, fields).read(); }

std::string to_yaml(const TrainConfig& config) {
  TrainConfig copy = config;
  std::string out, group;
  for (const auto& f : train_fields(copy)) {
    if (f.group() != group) out += str(group.empty() ? "" : "\n", "# ", f.group(), "\n");
    group = f.group();
    out += str(f.name(), ": ", yaml_value(f), "\n");
  }
  return out;
}

std::map<std::string, std::string> to_texts(const TrainConfig& config) {
  TrainConfig copy = config;
  std::map<std::string, std::string> out;
  for (const auto& f : train_fields(copy)) out[f.name()] = f.text();
  return out;
}

std::string to_json(const TrainConfig& config) {
  TrainConfig copy = config;
  Record record;
  for (const auto& f : train_fields(copy)) std::visit([&](const auto* value) { record.add(f.name(), *value); }, f.place());
  return record.line();
}

}  // namespace tessera
