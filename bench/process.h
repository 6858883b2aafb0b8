// What a benchmark asks of its own process: the product's way of waiting, the time since it was started, the memory it holds.
#pragma once
#include <cstddef>

namespace tessera {

// Starts the program again with the OpenMP setting of `tessera` (src/cli/main.cpp), so that readings are the product's. Returns at once
// when the setting is there. First thing in main.
void wait_restfully(char** argv);

// Since the kernel started this process: exec and linking count, and so does a start by wait_restfully. Steps of 10 ms.
double seconds_since_start();

// Bytes resident. peak: of all kinds, ever; the others: now.
struct Resident {
  size_t peak = 0, anonymous = 0, file = 0, shared = 0;
};
Resident resident();

}  // namespace tessera
