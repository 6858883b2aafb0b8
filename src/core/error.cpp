#include "core/error.h"

#include "core/shown.h"

namespace tessera {

std::string error_text(const std::string& where, const std::string& given, const std::string& allowed, const std::string& remedy) {
  return shown(where) + ": " + shown(given) + "\n  allowed: " + shown(allowed) + "\n  do this: " + shown(remedy);
}

void fail(const std::string& where, const std::string& given, const std::string& allowed, const std::string& remedy) {
  throw Error(error_text(where, given, allowed, remedy));
}

}  // namespace tessera
