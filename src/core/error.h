// Errors for users have four parts: where (file, key, flag, rank), what was given, what is allowed, what to do.
// Programmer errors are asserts. main catches once per rank and aborts the group.
#pragma once
#include <stdexcept>
#include <string>

namespace tessera {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Error with the text
//   where: given
//     allowed: allowed
//     do this: remedy
[[noreturn]] void fail(const std::string& where, const std::string& given, const std::string& allowed, const std::string& remedy);
// The text alone, for errors of another type.
std::string error_text(const std::string& where, const std::string& given, const std::string& allowed, const std::string& remedy);

}  // namespace tessera
