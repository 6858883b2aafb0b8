#include "testing/golden.h"

#include "io/file.h"

namespace tessera {

std::string shared(const std::string& relative) { return std::string(TESSERA_SHARED) + "/" + relative; }
bool have_shared() { return folder_exists(TESSERA_SHARED); }

}  // namespace tessera
