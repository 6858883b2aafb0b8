// The device that is the host. Its memory cannot be touched but by what its lanes run. Lanes run only when somebody waits for them, and
// then in a seeded order that nothing but moments constrains: the worst a real device may do.
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <span>

#include "backend/cuda/runtime.h"
#include "backend/cuda_host/kernel.h"
#include "backend/cuda_host/submit.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"

namespace tessera::cuda_host {
namespace {

constexpr size_t most_waiting = 20000;  // tasks of all lanes

struct Task {
  std::function<void()> work;  // empty: waits for `moment`
  Moment moment = 0;
};

struct LaneState {
  std::deque<Task> tasks;
  uint64_t given = 0, done = 0;
};

// Ranges of memory, with whom they belong to; of all devices of the process.
struct Memory {
  std::mutex mutex;
  std::map<const std::byte*, std::pair<size_t, Device*>> device, pinned;
};
Memory& memory() {
  static Memory m;
  return m;
}

bool within(const std::map<const std::byte*, std::pair<size_t, Device*>>& ranges, const void* p, Device* owner) {
  const auto* at = static_cast<const std::byte*>(p);
  auto next = ranges.upper_bound(at);
  if (next == ranges.begin()) return false;
  const auto& [begin, range] = *--next;
  return at < begin + range.first && (!owner || range.second == owner);
}

void* map(size_t bytes, int protection) {
  void* p = mmap(nullptr, std::max<size_t>(bytes, 1), protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

}  // namespace

struct Device {
  explicit Device(uint64_t seed) : rng(seed, Purpose::shuffle, "lanes") {}
  Rng rng;
  uint64_t steps = 0, kernels = 0;
  std::array<LaneState, std::size(all_lanes)> lane;
  int open = 0;

  LaneState& at(Lane l) { return lane[size_t(l)]; }
  bool passed(Moment m) const { return lane[m & 3].done >= m >> 2; }
  void protect(int protection) {
    const std::scoped_lock lock(memory().mutex);
    for (const auto& [begin, range] : memory().device)
      if (range.second == this) mprotect(const_cast<std::byte*>(begin), std::max<size_t>(range.first, 1), protection);
  }
  bool step();
  void run_until_empty(std::span<const Lane>);
};

// One task of a lane that can go on.
bool Device::step() {
  std::vector<LaneState*> ready;
  for (LaneState& l : lane)
    if (!l.tasks.empty() && (l.tasks.front().work || passed(l.tasks.front().moment))) ready.push_back(&l);
  if (ready.empty()) return false;
  LaneState& l = *ready[size_t(rng.below(steps++, ready.size()))];
  const Task task = std::move(l.tasks.front());
  l.tasks.pop_front();
  if (task.work) task.work();
  ++l.done;
  return true;
}

void Device::run_until_empty(std::span<const Lane> wanted) {
  const auto left = [&] { return std::any_of(wanted.begin(), wanted.end(), [&](Lane l) { return !at(l).tasks.empty(); }); };
  if (!left()) return;
  if (open++ == 0) protect(PROT_READ | PROT_WRITE);
  struct Close {
    Device& d;
    ~Close() {
      if (--d.open == 0) d.protect(PROT_NONE);
    }
  } close{*this};
  while (left()) {
    const bool moved = step();
    assert(moved && "lanes wait for each other");
    if (!moved) break;
  }
}

void submit(Device& d, Lane lane, std::function<void()> work) {
  LaneState& l = d.at(lane);
  l.tasks.push_back({std::move(work), 0});
  ++l.given;
  size_t waiting = 0;
  for (const LaneState& each : d.lane) waiting += each.tasks.size();
  if (waiting > most_waiting) d.run_until_empty(all_lanes);
}

void submit_kernel(Device& d, const Grid& grid, std::function<void()> thread) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  submit(d, Lane::compute, [&d, grid, thread = std::move(thread)] { run_blocks(grid, thread, ++d.kernels); });
}

void CloseDevice::operator()(Device* d) const {
  d->run_until_empty(all_lanes);
  {
    const std::scoped_lock lock(memory().mutex);
    for (auto* ranges : {&memory().device, &memory().pinned})
      for (auto& [begin, range] : *ranges)
        if (range.second == d) range.second = nullptr;
  }
  delete d;
}

std::string bus_address(int) { return "0000:00:00.0"; }
bool is_in_use(int) { return false; }

OpenDevice open_device(int index, uint64_t seed) {
  if (index != 0) fail(str("device cuda_host:", index), "there is one", "cuda_host", "use it");
  return OpenDevice(std::make_unique<Device>(seed).release());
}

std::string describe(Device&) { return "cuda_host: kernels of the GPU on the host, for tests"; }
int multiprocessors(Device&) { return 2; }
size_t total_memory(Device&) { return size_t(8) << 30; }
size_t reserved(Device& d) {
  size_t used = 0;
  const std::scoped_lock lock(memory().mutex);
  for (const auto& [begin, range] : memory().device)
    if (range.second == &d) used += range.first;
  return used;
}
size_t free_memory(Device& d) { return total_memory(d) - std::min(reserved(d), total_memory(d)); }

namespace {
// What uses the memory is done before it goes.
void finish_owner(const std::map<const std::byte*, std::pair<size_t, Device*>>& ranges, void* data) {
  Device* owner = nullptr;
  {
    const std::scoped_lock lock(memory().mutex);
    const auto found = ranges.find(static_cast<std::byte*>(data));
    assert(found != ranges.end());
    owner = found->second.second;
  }
  if (owner) owner->run_until_empty(all_lanes);
}
}  // namespace

void* take_memory(Device& d, size_t bytes) {
  void* p = bytes <= free_memory(d) ? map(bytes, d.open ? PROT_READ | PROT_WRITE : PROT_NONE) : nullptr;
  if (!p) return nullptr;
  const std::scoped_lock lock(memory().mutex);
  memory().device[static_cast<std::byte*>(p)] = {bytes, &d};
  return p;
}

void give_memory(void* data, size_t bytes) {
  finish_owner(memory().device, data);
  const std::scoped_lock lock(memory().mutex);
  memory().device.erase(static_cast<std::byte*>(data));
  munmap(data, std::max<size_t>(bytes, 1));
}

bool is_device_memory(Device& d, const void* p) {
  const std::scoped_lock lock(memory().mutex);
  return within(memory().device, p, &d);
}

void* take_pinned(Device& d, size_t bytes) {
  void* p = map(bytes, PROT_READ | PROT_WRITE);
  if (!p) return nullptr;
  const std::scoped_lock lock(memory().mutex);
  memory().pinned[static_cast<std::byte*>(p)] = {bytes, &d};
  return p;
}

void give_pinned(void* data, size_t bytes) {
  finish_owner(memory().pinned, data);
  unpin(data, bytes);
  munmap(data, std::max<size_t>(bytes, 1));
}

void pin(void* data, size_t bytes) {
  const std::scoped_lock lock(memory().mutex);
  memory().pinned[static_cast<std::byte*>(data)] = {bytes, nullptr};
}

void unpin(void* data, size_t) {
  const std::scoped_lock lock(memory().mutex);
  memory().pinned.erase(static_cast<std::byte*>(data));
}

Moment now(Device& d, Lane lane) { return d.at(lane).given << 2 | Moment(lane); }

void wait(Device& d, Lane lane, Moment m) {
  if (m == 0 || d.passed(m)) return;
  LaneState& l = d.at(lane);
  l.tasks.push_back({{}, m});
  ++l.given;
}

void finish(Device& d, Lane lane) { d.run_until_empty({&lane, 1}); }
void* native(Device&, Lane) { return nullptr; }

void copy(Device& d, Lane lane, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  bool late_from = false, late_to = false;
  {
    const std::scoped_lock lock(memory().mutex);
    late_from = within(memory().device, from, &d) || within(memory().pinned, from, nullptr);
    late_to = within(memory().device, to, &d) || (lane != Lane::compute && within(memory().pinned, to, nullptr));
  }
  if (late_from) {
    submit(d, lane, [=] { std::memcpy(to, from, bytes); });
  } else {
    const auto* begin = static_cast<const std::byte*>(from);
    submit(d, lane, [to, staged = std::vector<std::byte>(begin, begin + bytes)] { std::memcpy(to, staged.data(), staged.size()); });
  }
  if (!late_to) finish(d, lane);
}

void fill_zero(Device& d, Lane lane, void* data, size_t bytes) {
  submit(d, lane, [=] { std::memset(data, 0, bytes); });
}

int device_count() { return 1; }
std::vector<std::pair<std::string, std::string>> facts() { return {}; }

}  // namespace tessera::cuda_host
