// Arguments: the words after a command's name, matched against its fields. What every command shares: reading flags, unknown names,
// --help.
//
//   int run_tokenize(const Arguments& args) {
//     TokenizeOptions options;
//     FieldList fields = tokenize_fields(options);
//     if (!read_options(fields, args)) return 0;  // --help was printed
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "cli/field.h"

namespace tessera {

using Arguments = std::vector<std::string>;

struct CommandLine {
  std::vector<Given> given;  // flags in order
  Arguments words;           // what belongs to no flag
};

// Flags are --name value, --name=value, or --name alone for a bool; '-' and '_' are the same in names; --no_name sets a bool to false.
// A list takes several values. A flag that is no field takes what follows up to the next flag. Reading ends at the first of `stop_words`
// that stands where a flag, a word or the value of a flag that is no field could stand; words then holds it and all that follows.
CommandLine read_command_line(const Arguments&, FieldList&, const std::vector<std::string>& stop_words = {});

// Sets the fields; fails on unknown names, words, and needed fields that are missing. False when --help was asked for and printed.
bool read_options(FieldList&, const Arguments&);

bool asks_for_help(const Arguments&);  // --help or -h is among them

// Throws: nothing has this name; the nearest of `known` is proposed.
[[noreturn]] void unknown_name(const Given&, const std::vector<std::string>& known);
void check_needed(const FieldList&);  // throws when a needed field is empty

// What --help prints: how the command is used, then its flags by group with help, other spellings, allowed values and the default in
// `column`, beside those of the other columns where they differ.
std::string help_text(const FieldList&, std::string_view column = "tessera");

}  // namespace tessera
