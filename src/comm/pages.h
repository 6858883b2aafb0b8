// Pages from the system: zeroed, page-aligned, committed when first touched. Inside comm only.
#pragma once
#include <cstddef>

#include "core/buffer.h"

namespace tessera {

Buffer private_pages(size_t bytes);         // seen by the threads of this process; throws Error when there is no room
Buffer file_pages(int file, size_t bytes);  // a shared view of an open file of at least that size; the file can be closed afterwards
int memory_file(size_t bytes);              // a file that lives in memory only; throws Error
void close_file(int file);

}  // namespace tessera
