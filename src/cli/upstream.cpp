#include "cli/upstream.h"

#include <cstdlib>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

// 0, 0.0 and 0e0 are one value, so are True and yes.
bool same_value(const std::string& a, const std::string& b) {
  if (lower(a) == lower(b)) return true;
  char *a_end = nullptr, *b_end = nullptr;
  const double x = std::strtod(a.c_str(), &a_end), y = std::strtod(b.c_str(), &b_end);
  if (!a.empty() && !b.empty() && !*a_end && !*b_end) return x == y;
  const auto p = read_bool(a), q = read_bool(b);
  return p && q && *p == *q;
}

std::string written(const Given& given) { return given.values.empty() ? "true" : join(given.values, " "); }

bool asks_for_what_we_do(const UpstreamFlag& flag, const Given& given) {
  if (flag.same.empty()) return false;
  for (const auto& value : split(flag.same, '|'))
    if (same_value(value, written(given))) return true;
  return false;
}

}  // namespace

const UpstreamFlag* find_upstream_flag(std::string_view name) {
  for (const auto& flag : upstream_flags())
    if (flag.name == name) return &flag;
  return nullptr;
}

std::vector<std::string> upstream_names() {
  std::vector<std::string> names;
  for (const auto& flag : upstream_flags()) names.emplace_back(flag.name);
  return names;
}

std::vector<std::string> judge_upstream(const std::vector<Given>& all, FieldList& fields) {
  std::vector<std::string> notices, refused, allowed;
  auto refuse = [&](const Given& given, const std::string& instead) {
    refused.push_back(str(given.where, " ", written(given)));
    if (!instead.empty()) allowed.push_back(str(given.where, " ", instead));
  };
  for (const auto& given : all) {
    const Field* field = fields.find(given.name);
    const UpstreamFlag* flag = find_upstream_flag(given.name);
    if (field && field->is_not_yet(given)) refuse(given, replace_all(field->allowed(), ", ", " | "));
    if (field || !flag || asks_for_what_we_do(*flag, given)) continue;
    if (flag->note.empty())
      refuse(given, replace_all(std::string(flag->same), "|", " | "));
    else
      notices.push_back(str(given.where, " is accepted and has no effect here: ", flag->note));
  }
  if (!refused.empty())
    fail(join(refused, ", "), "not yet built", allowed.empty() ? "to leave it out" : join(allowed, ", "),
         refused.size() == 1 ? "leave it out, or give the allowed value" : "leave them out, or give the allowed values");
  return notices;
}

}  // namespace tessera
