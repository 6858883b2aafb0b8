#include "comm/comm.h"

#include <cassert>
#include <cstdlib>
#include <cstring>

namespace tessera {
namespace {
template <class T>
std::vector<T> gather_each(Comm& comm, T mine) {
  std::vector<T> all(comm.size());
  std::vector<Range> parts(comm.size());
  for (size_t r = 0; r < parts.size(); ++r) parts[r] = {r * sizeof(T), (r + 1) * sizeof(T)};
  all[comm.rank()] = mine;
  comm.all_gather(reinterpret_cast<std::byte*>(all.data()), parts);
  return all;
}
}  // namespace

void Comm::all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte* mine) {
  const Range part = parts[size_t(rank())];
  if (part.size()) std::memcpy(buffer + part.begin, mine, part.size());
  all_gather(buffer, parts);
}

std::vector<int64_t> gather_values(Comm& comm, int64_t mine) { return gather_each(comm, mine); }
std::vector<double> gather_values(Comm& comm, double mine) { return gather_each(comm, mine); }

int64_t sum_of(Comm& comm, int64_t mine) {
  int64_t sum = 0;
  for (const int64_t v : gather_values(comm, mine)) sum += v;
  return sum;
}

std::vector<std::string> gather_strings(Comm& comm, const std::string& mine) {
  std::vector<Range> parts;
  size_t end = 0;
  for (const int64_t length : gather_values(comm, int64_t(mine.size()))) {
    parts.push_back({end, end + size_t(length)});
    end += size_t(length);
  }
  std::string text(end, '\0');
  text.replace(parts[comm.rank()].begin, mine.size(), mine);
  comm.all_gather(reinterpret_cast<std::byte*>(text.data()), parts);
  std::vector<std::string> all;
  for (const Range& part : parts) all.push_back(text.substr(part.begin, part.size()));
  return all;
}

bool started_by_mpi() {
  for (const char* name : {"PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"})
    if (std::getenv(name)) return true;
  return false;
}

}  // namespace tessera
