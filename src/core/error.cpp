#include "core/error.h"

namespace tessera {

std::string error_text(const std::string& where, const std::string& given, const std::string& allowed, const std::string& remedy) {
  return where + ": " + given + "\n  allowed: " + allowed + "\n  do this: " + remedy;
}

void fail(const std::string& where, const std::string& given, const std::string& allowed, const std::string& remedy) {
  throw Error(error_text(where, given, allowed, remedy));
}

}  // namespace tessera
