#include "ops/check.h"

#include "core/error.h"
#include "core/text.h"

namespace tessera {

void require(bool holds, const char* operation, const char* takes, std::initializer_list<Tensor> given) {
  if (holds) return;
  std::vector<std::string> parts;
  for (const Tensor& t : given) parts.push_back(str(t.shape.text(), " ", name_of(t.dtype)));
  fail(operation, str("called with ", join(parts, ", ")), takes, "correct the caller; this is a mistake in the program");
}

}  // namespace tessera
