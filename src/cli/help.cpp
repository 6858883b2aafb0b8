#include "cli/arguments.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr size_t help_width = 110;

// Words of `text` in lines of at most help_width letters, each indented.
std::string wrapped(const std::string& text, size_t indent) {
  std::string out, line(indent, ' ');
  for (const auto& word : split(text, ' ')) {
    if (line.size() > indent && line.size() + word.size() + 1 > help_width) out += line + "\n", line = std::string(indent, ' ');
    line += str(line.size() > indent ? " " : "", word);
  }
  return out + line + "\n";
}

std::string shown(const std::string& value) { return value.empty() ? "none" : value; }

std::string default_line(const Field& f, std::string_view column) {
  const std::string here = f.default_of(column);
  std::vector<std::string> others;
  for (std::string_view other : {"tessera", "fsdp_qlora", "trl"})
    if (f.default_of(other) != here) others.push_back(str(other, ": ", shown(f.default_of(other))));
  const bool needed = f.is_needed() && here.empty();
  return str(needed ? "needed" : str("default: ", shown(here)), others.empty() ? "" : str(" (", join(others, "; "), ")"));
}

std::string field_help(const Field& f, std::string_view column) {
  std::string out = str("  --", f.name(), "\n", wrapped(f.help(), 6));
  if (!f.aliases().empty()) {
    std::vector<std::string> flags;
    for (const auto& a : f.aliases()) flags.push_back(str("--", a));
    out += wrapped(str("also: ", join(flags, ", ")), 6);
  }
  if (const std::string allowed = f.allowed(); allowed != "a text") out += wrapped(str("allowed: ", allowed), 6);
  return f.shows_default() ? out + wrapped(default_line(f, column), 6) : out;
}

}  // namespace

std::string help_text(const FieldList& fields, std::string_view column) {
  std::string out = fields.about() + "\n", group;
  for (const auto& f : fields) {
    if (f.group() != group) out += str("\n", f.group(), "\n");
    group = f.group();
    out += field_help(f, column);
  }
  return out;
}

}  // namespace tessera
