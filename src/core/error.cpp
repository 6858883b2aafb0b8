#include "core/error.h"

namespace tessera {

void fail(const std::string& where, const std::string& given, const std::string& allowed, const std::string& remedy) {
  throw Error(where + ": " + given + "\n  allowed: " + allowed + "\n  do this: " + remedy);
}

}  // namespace tessera
