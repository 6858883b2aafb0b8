// What the program says while it works. Lines go to stderr; results that a user pipes go to stdout and do not pass here.
// Only rank 0 speaks, except errors, which every rank prints with its rank.
#pragma once
#include <string>

namespace tessera {

void set_log_rank(int rank, int size);  // of this thread (ranks may be threads); call before the first line
bool speaks();                          // true on rank 0

void say(const std::string& line);       // a plain line
void warn(const std::string& line);      // "warning: ..."
void complain(const std::string& line);  // an error, on every rank, with "[rank r]" when there are several

// Bytes this process holds now and at most so far (VmRSS, VmHWM of /proc/self/status).
size_t resident_bytes();
size_t peak_resident_bytes();

}  // namespace tessera
