#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "models/peft.h"
#include "models/peft_regex.h"

namespace tessera {
namespace {

const std::string target_key = "target_modules", pattern_key = "layers_pattern";

bool names_module(const std::string& entry, const std::string& path) { return path == entry || ends_with(path, "." + entry); }

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

std::vector<std::string> last_parts(const std::vector<std::string>& paths) {
  std::vector<std::string> out;
  for (const auto& path : paths)
    if (std::find(out.begin(), out.end(), last_part(path)) == out.end()) out.push_back(last_part(path));
  return out;
}

std::string nearest_module(const std::string& entry, const std::vector<std::string>& linear) {
  const std::string part = nearest(entry, last_parts(linear));
  return part.empty() ? nearest(entry, linear) : part;
}

// A ModuleNames ready to be asked many times.
class Matcher {
 public:
  Matcher(const std::string& key, const ModuleNames& names) : names_(names) {
    if (names.regex) regex_.emplace(key, names.entries.at(0));
  }
  bool operator()(const std::string& path) const {
    if (names_.regex) return regex_->matches(path);
    if (names_.all_linear()) return path != "lm_head";
    return std::any_of(names_.entries.begin(), names_.entries.end(), [&](const auto& entry) { return names_module(entry, path); });
  }

 private:
  const ModuleNames& names_;
  std::optional<PeftRegex> regex_;
};

// layers_to_transform: the number behind layers_pattern, or the first number that is a whole part of the path.
class LayerFilter {
 public:
  explicit LayerFilter(const PeftConfig& c) : config_(c) {
    if (c.layers_pattern.empty()) expressions_.emplace_back(pattern_key, ".*\\.[^.]*\\.(?<number>\\d+)\\.");
    for (const auto& pattern : c.layers_pattern) expressions_.emplace_back(pattern_key, ".*\\." + pattern + "\\.(?<number>\\d+)\\.");
  }
  // A path that is itself an entry of the list is not filtered, as in PEFT.
  bool operator()(const std::string& path) const {
    const auto& layers = config_.layers_to_transform;
    const auto& entries = config_.target_modules.entries;
    if (layers.empty() || std::find(entries.begin(), entries.end(), path) != entries.end()) return true;
    const auto layer = layer_of(path);
    return layer && std::find(layers.begin(), layers.end(), *layer) != layers.end();
  }
  std::optional<int64_t> layer_of(const std::string& path) const {
    for (const auto& expression : expressions_)
      if (const auto number = expression.number(path)) return number;
    return std::nullopt;
  }

 private:
  const PeftConfig& config_;
  std::vector<PeftRegex> expressions_;
};

// rank_pattern and alpha_pattern: the first key that is the end of the path, from a dot on.
template <class T>
class PatternTable {
 public:
  PatternTable(const std::string& key, const std::vector<std::pair<std::string, T>>& rows) {
    for (const auto& [expression, value] : rows) rows_.emplace_back(PeftRegex(key, "(.*\\.)?(" + expression + ")"), value);
  }
  T value(const std::string& path, T otherwise) const {
    for (const auto& [expression, value] : rows_)
      if (expression.matches(path)) return value;
    return otherwise;
  }

 private:
  std::vector<std::pair<PeftRegex, T>> rows_;
};

void check_targets(const ModuleNames& targets, const std::vector<std::string>& linear) {
  if (targets.empty()) fail(target_key, "is empty", join(last_parts(linear), ", "), "name the layers that the adapter is for");
  if (targets.regex || targets.all_linear()) return;
  for (const auto& entry : targets.entries) {
    if (std::any_of(linear.begin(), linear.end(), [&](const auto& path) { return names_module(entry, path); })) continue;
    const std::string near = nearest_module(entry, linear);
    fail(target_key, entry + " is no linear layer of this model", join(last_parts(linear), ", ") + "; or all-linear",
         near.empty() ? "remove it" : "write " + near);
  }
}

void check_layers(const PeftConfig& c, const LayerFilter& filter, const std::vector<std::string>& linear) {
  if (c.layers_to_transform.empty() && !c.layers_pattern.empty())
    fail("layers_pattern", "given without layers_to_transform", "both or none", "add layers_to_transform");
  if (c.layers_to_transform.empty()) return;
  if (c.target_modules.regex) {
    fail("layers_to_transform", "given with one regular expression for target_modules", "a list of names",
         "put the layers into the expression");
  }
  std::set<int64_t> found;
  for (const auto& path : linear)
    if (const auto layer = filter.layer_of(path)) found.insert(*layer);
  for (const int64_t layer : c.layers_to_transform) {
    if (found.contains(layer)) continue;
    fail("layers_to_transform", str("layer ", layer),
         found.empty() ? "no module has a layer number" : str(*found.begin(), " to ", *found.rbegin()), "name layers of this model");
  }
}

void warn_of_idle_exclusions(const ModuleNames& exclude, const std::vector<std::string>& linear) {
  if (exclude.regex) return;
  for (const auto& entry : exclude.entries) {
    if (std::any_of(linear.begin(), linear.end(), [&](const auto& path) { return names_module(entry, path); })) continue;
    const std::string near = nearest_module(entry, linear);
    warn("exclude_modules: " + entry + " is no linear layer of this model" + (near.empty() ? "" : "; is " + near + " meant?"));
  }
}

}  // namespace

ModuleNames::ModuleNames(std::vector<std::string> given) : entries(std::move(given)) {
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-' || c == '.'; };
  regex = entries.size() == 1 && !std::all_of(entries[0].begin(), entries[0].end(), plain);
}

bool ModuleNames::all_linear() const { return !regex && entries.size() == 1 && lower(entries[0]) == "all-linear"; }

std::vector<TargetedModule> targeted_modules(const PeftConfig& c, const std::vector<std::string>& linear) {
  check_targets(c.target_modules, linear);
  const Matcher wanted(target_key, c.target_modules), excluded("exclude_modules", c.exclude_modules);
  const LayerFilter in_layers(c);
  check_layers(c, in_layers, linear);
  warn_of_idle_exclusions(c.exclude_modules, linear);
  const PatternTable<int64_t> ranks("rank_pattern", c.rank_pattern);
  const PatternTable<double> alphas("alpha_pattern", c.alpha_pattern);

  std::vector<TargetedModule> out;
  for (const auto& path : linear) {
    if (!wanted(path) || excluded(path) || !in_layers(path)) continue;
    const int64_t rank = ranks.value(path, c.rank);
    const double alpha = alphas.value(path, c.alpha);
    out.push_back({path, rank, alpha / (c.use_rslora ? std::sqrt(double(rank)) : double(rank))});
  }
  if (out.empty()) {
    fail(target_key, join(c.target_modules.entries, ", ") + " means no linear layer of this model",
         join(last_parts(linear), ", ") +
             (c.exclude_modules.empty() ? "" : "; less exclude_modules: " + join(c.exclude_modules.entries, ", ")),
         c.target_modules.regex ? "the expression must match whole paths, such as " + (linear.empty() ? "" : linear[0])
                                : "change the names");
  }
  return out;
}

}  // namespace tessera
