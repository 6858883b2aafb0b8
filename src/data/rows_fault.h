// Where and why a text is not JSON. Slow and exact: asked only after the fast parser has refused a row, to tell the user the place.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace tessera {

constexpr size_t json_max_depth = 1024;

struct JsonFault {
  size_t at = 0;  // byte in the text; its size when the text ends too early
  std::string what;
};

// The first fault of a text that should be one JSON value in UTF-8; nothing when it is one. Escapes of half surrogate pairs are faults.
std::optional<JsonFault> find_json_fault(std::string_view text);

}  // namespace tessera
