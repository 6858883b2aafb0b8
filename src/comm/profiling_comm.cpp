#include "comm/profiling_comm.h"

namespace tessera {
namespace {
size_t end_of(std::span<const Range> parts) {
  size_t end = 0;
  for (const Range& p : parts) end = std::max(end, p.end);
  return end;
}
}  // namespace

template <class Call>
void ProfilingComm::timed(const char* name, Dtype dtype, size_t count, double bytes, Call&& call) {
  Operation o;
  o.name = name;
  o.dtype = dtype;
  o.rank = 1, o.sizes[0] = int64_t(count);
  o.bytes = bytes;
  const ProfileScope phase(Phase::communication);
  const int64_t begin = Profile::now();
  call();
  profile_.record(o, begin, Profile::now());
}

// Bytes that pass the memory of this rank: what it receives is read elsewhere and written here.
void ProfilingComm::all_gather(std::byte* buffer, std::span<const Range> parts) {
  const size_t bytes = end_of(parts), received = bytes - parts[size_t(rank())].size();
  timed("all_gather", Dtype::u8, bytes, 2 * double(received), [&] { comm_.all_gather(buffer, parts); });
}

// Each rank reads its part of everybody's array and reads and writes its sum.
void ProfilingComm::reduce_scatter(float* sum, const float* x, std::span<const Range> parts) {
  const double mine = double(parts[size_t(rank())].size() * sizeof(float));
  timed("reduce_scatter", Dtype::f32, end_of(parts), mine * (size() + 2), [&] { comm_.reduce_scatter(sum, x, parts); });
}

void ProfilingComm::broadcast(std::byte* buffer, size_t bytes, int root) {
  timed("broadcast", Dtype::u8, bytes, rank() == root ? 0 : 2 * double(bytes), [&] { comm_.broadcast(buffer, bytes, root); });
}

void ProfilingComm::barrier() {
  timed("barrier", Dtype::u8, 0, 0, [&] { comm_.barrier(); });
}

std::unique_ptr<Comm> ProfilingComm::split(int color, int key) {
  return std::make_unique<ProfilingComm>(comm_.split(color, key), profile_);
}

}  // namespace tessera
