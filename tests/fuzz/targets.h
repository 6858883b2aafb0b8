// The readers of files that strangers wrote, each as a function of such a file's bytes. The contract: a reader returns, or throws Error
// with its four parts; anything else (another exception, a sanitizer's report, a hang, gigabytes of memory) is a finding. The same
// functions are run by libFuzzer (`make fuzz`) and over corpus/NAME by `make test`.
#pragma once
#include <span>
#include <string_view>

namespace tessera {

struct FuzzTarget {
  std::string_view name;  // of its corpus folder
  void (*read)(std::string_view input);
};
std::span<const FuzzTarget> fuzz_targets();

// Calls the target's reader. Error is what the reader may throw: it ends here, after a look at its text.
void run_fuzz_target(const FuzzTarget&, std::string_view input);

}  // namespace tessera
