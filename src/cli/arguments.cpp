#include "cli/arguments.h"

#include <algorithm>
#include <cctype>
#include <cstdio>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

bool is_flag(const std::string& word) { return starts_with(word, "--") && word.size() > 2; }

// "-1" and "-" are values, "-x" is a flag of some other program.
bool is_short_flag(const std::string& word) {
  return word.size() > 1 && word[0] == '-' && std::isalpha(static_cast<unsigned char>(word[1]));
}

Given begin_flag(const std::string& word) {
  const size_t equals = word.find('=');
  Given given;
  given.where = word.substr(0, equals);
  given.name = replace_all(given.where.substr(2), "-", "_");
  if (equals != std::string::npos) given.values = {word.substr(equals + 1)};
  return given;
}

// --no_gradient_checkpointing, as Hugging Face's parser has it.
void undo_no(Given& given, FieldList& fields) {
  if (!starts_with(given.name, "no_") || fields.find(given.name)) return;
  const Field* f = fields.find(given.name.substr(3));
  if (!f || !f->is_bool() || !given.values.empty()) return;
  given.name = given.name.substr(3);
  given.values = {"false"};
}

bool is_among(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// How many of the words from `begin` on are values of this flag.
size_t count_values(const Arguments& args, size_t begin, const Field* field, const std::vector<std::string>& stop_words) {
  size_t end = begin;
  while (end < args.size() && !is_flag(args[end]) && !is_short_flag(args[end]) && (field || !is_among(stop_words, args[end]))) ++end;
  const size_t most = end - begin;
  if (!field || field->is_list()) return most;
  if (field->is_bool()) return most > 0 && field->takes(args[begin]) ? 1 : 0;
  return std::min<size_t>(most, 1);
}

}  // namespace

CommandLine read_command_line(const Arguments& args, FieldList& fields, const std::vector<std::string>& stop_words) {
  CommandLine line;
  for (size_t i = 0; i < args.size();) {
    if (is_short_flag(args[i])) unknown_name({args[i].substr(1), args[i], {}}, fields.names());
    if (is_among(stop_words, args[i])) {
      line.words.insert(line.words.end(), args.begin() + std::ptrdiff_t(i), args.end());
      break;
    }
    if (!is_flag(args[i])) {
      line.words.push_back(args[i++]);
      continue;
    }
    Given given = begin_flag(args[i++]);
    undo_no(given, fields);
    if (given.values.empty()) {
      const size_t n = count_values(args, i, fields.find(given.name), stop_words);
      given.values.assign(args.begin() + std::ptrdiff_t(i), args.begin() + std::ptrdiff_t(i + n));
      i += n;
    }
    line.given.push_back(std::move(given));
  }
  return line;
}

bool asks_for_help(const Arguments& args) {
  return std::any_of(args.begin(), args.end(), [](const auto& a) { return a == "--help" || a == "-h"; });
}

void unknown_name(const Given& given, const std::vector<std::string>& known) {
  const std::string near = nearest(given.name, known);
  const bool flag = starts_with(given.where, "-");
  fail(given.where, "there is no option of this name", "the names that --help lists",
       near.empty() ? "see --help" : str("perhaps ", flag ? "--" : "", near, " is meant"));
}

void check_needed(const FieldList& fields) {
  for (const auto& f : fields)
    if (f.is_needed() && f.text().empty())
      fail(str("tessera ", fields.command()), str("--", f.name(), " is missing"), f.help(), str("add --", f.name(), " VALUE"));
}

bool read_options(FieldList& fields, const Arguments& args) {
  if (asks_for_help(args)) {
    const std::string text = help_text(fields);
    std::fwrite(text.data(), 1, text.size(), stdout);
    return false;
  }
  const CommandLine line = read_command_line(args, fields);
  if (!line.words.empty())
    fail(str("tessera ", fields.command()), str("\"", line.words[0], "\" belongs to no option"), "options, as --name value",
         str("see tessera ", fields.command(), " --help"));
  for (const auto& given : line.given) {
    Field* f = fields.find(given.name);
    if (!f) unknown_name(given, fields.names());
    f->set(given);
  }
  check_needed(fields);
  return true;
}

}  // namespace tessera
