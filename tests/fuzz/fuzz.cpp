// libFuzzer's entry. TESSERA_FUZZ_TARGET names the reader; one program holds them all, as linking with sanitizers is slow.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "core/log.h"
#include "targets.h"

namespace {
const tessera::FuzzTarget* target = nullptr;
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  tessera::set_log_rank(1, 2);  // warnings are not printed
  const char* name = std::getenv("TESSERA_FUZZ_TARGET");
  for (const auto& t : tessera::fuzz_targets())
    if (name && t.name == name) target = &t;
  if (target) return 0;
  std::fputs("TESSERA_FUZZ_TARGET must be one of:", stderr);
  for (const auto& t : tessera::fuzz_targets()) std::fprintf(stderr, " %s", t.name.data());
  std::fputs("\n", stderr);
  std::exit(1);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tessera::run_fuzz_target(*target, {reinterpret_cast<const char*>(data), size});
  return 0;
}
