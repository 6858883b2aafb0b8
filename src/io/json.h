// JSON of the files we read and write, with errors that name the file, the line and the column. The library's heavy header stays in .cpp
// files: those that look into a Json include <nlohmann/json.hpp> themselves.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tessera {

using Json = nlohmann::ordered_json;  // keeps the order of keys; objects search linearly, so iterate over large ones

// The parsed file. Throws Error naming the file, line, column and what is wrong: bad syntax, invalid UTF-8, an object with one key twice,
// more than 512 levels of nesting, text after the value. A UTF-8 byte order mark at the start is skipped.
Json read_json(const std::string& path);
Json parse_json(const std::string& text, const std::string& where);

}  // namespace tessera
