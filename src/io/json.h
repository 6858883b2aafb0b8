// JSON of the files we read and write, with errors that name the file, the line and the key. The library's heavy header stays in .cpp
// files that ask for it (io/json_library.h).
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tessera {

using Json = nlohmann::ordered_json;  // keeps the order of keys

// The parsed file. Throws Error naming the file, line, column and what is wrong; also for duplicate keys, trailing text, too deep nesting.
Json read_json(const std::string& path);
Json parse_json(const std::string& text, const std::string& where);

}  // namespace tessera
