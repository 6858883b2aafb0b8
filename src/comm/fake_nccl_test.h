// NCCL for ranks that are threads, on any backend: bytes pass through the host. It stands in the exchange lane as NCCL does: it reads after
// all that the lane was given, and what it writes is there at the lane's end. For *_test.cpp only.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>

#include "backend/backend.h"
#include "comm/nccl_library.h"

namespace tessera {

struct FakeNcclFaults {
  std::atomic<int> init_result = 0, call_result = 0, async_error = 0;  // told instead of success
  std::atomic<bool> nothing_moves = false, stream_busy = false;
  std::atomic<int> aborted = 0, destroyed = 0;  // groups that ended so
};

class FakeNccl {
 public:
  // The library of ranks that call serve() on their threads. One FakeNccl at a time.
  static NcclLibrary library();
  static void serve(Backend& backend) { backend_of_thread() = &backend; }

  FakeNccl() { now() = this; }
  ~FakeNccl() { now() = nullptr; }
  FakeNcclFaults faults;

 private:
  struct Op {
    enum Kind { all_gather, broadcast, send, receive } kind;
    const void* from;
    void* to;
    size_t bytes;
    int peer;  // root of a broadcast
  };
  struct Message {
    Op::Kind kind;
    int from, to;  // to: -1 is all
    std::vector<std::byte> bytes;
  };
  struct Meeting {
    int size = 0, here = 0;
    uint64_t round = 0;
    std::vector<Message> messages;
    std::condition_variable changed;
  };
  struct Group {
    Meeting& meeting;
    Backend& backend;
    int rank;
    std::vector<Op> ops;
  };

  static FakeNccl*& now() {
    static FakeNccl* one = nullptr;
    return one;
  }
  static Backend*& backend_of_thread() {
    static thread_local Backend* backend = nullptr;
    return backend;
  }
  static int& depth() {  // of group_start on this thread
    static thread_local int n = 0;
    return n;
  }
  static std::vector<Group*>& open_groups() {
    static thread_local std::vector<Group*> groups;
    return groups;
  }
  static size_t width(int type) { return type == NcclLibrary::float32 ? 4 : 1; }

  void meet(Meeting& m) {
    std::unique_lock lock(mutex_);
    const uint64_t round = m.round;
    if (++m.here == m.size)
      m.here = 0, ++m.round, m.changed.notify_all();
    else
      m.changed.wait(lock, [&] { return m.round != round; });
  }
  void run(Group& g);
  static int give(void* group, Op op) {
    Group& g = *static_cast<Group*>(group);
    if (const int result = now()->faults.call_result) return result;
    g.ops.push_back(op);
    if (depth() == 0)
      now()->run(g);
    else if (open_groups().empty())
      open_groups().push_back(&g);
    return NcclLibrary::success;
  }

  std::mutex mutex_;
  int ids_ = 0;
  std::map<std::string, Meeting> meetings_;
};

inline void FakeNccl::run(Group& g) {
  const std::vector<Op> ops = std::move(g.ops);
  g.ops.clear();
  if (faults.nothing_moves) return;
  g.backend.wait(Lane::to_host, g.backend.now(Lane::exchange));
  g.backend.wait(Lane::to_device, g.backend.now(Lane::exchange));
  for (const Op& op : ops) {
    if (op.kind == Op::receive || (op.kind == Op::broadcast && op.peer != g.rank)) continue;
    Message m{op.kind, g.rank, op.kind == Op::send ? op.peer : -1, std::vector<std::byte>(op.bytes)};
    g.backend.copy_beside(m.bytes.data(), op.from, op.bytes);
    const std::lock_guard lock(mutex_);
    g.meeting.messages.push_back(std::move(m));
  }
  meet(g.meeting);
  std::vector<bool> taken(g.meeting.messages.size());
  const auto take = [&](Op::Kind kind, int from, size_t bytes) -> const std::byte* {
    for (size_t i = 0; i < taken.size(); ++i) {
      const Message& m = g.meeting.messages[i];
      if (taken[i] || m.kind != kind || m.from != from || (m.to >= 0 && m.to != g.rank)) continue;
      taken[i] = true;
      if (m.bytes.size() != bytes) throw std::runtime_error("fake NCCL: the sizes of an exchange differ");
      return m.bytes.data();
    }
    throw std::runtime_error("fake NCCL: nothing was sent to this rank");
  };
  for (const Op& op : ops) {
    if (op.kind == Op::all_gather)
      for (int r = 0; r < g.meeting.size; ++r)
        g.backend.copy_beside(static_cast<std::byte*>(op.to) + size_t(r) * op.bytes, take(op.kind, r, op.bytes), op.bytes);
    else if (op.kind != Op::send)
      g.backend.copy_beside(op.to, take(op.kind == Op::receive ? Op::send : op.kind, op.peer, op.bytes), op.bytes);
  }
  g.backend.wait(Lane::exchange, g.backend.now(Lane::to_device));
  meet(g.meeting);
  if (g.rank == 0) g.meeting.messages.clear();
  meet(g.meeting);
}

inline NcclLibrary FakeNccl::library() {
  NcclLibrary l;
  l.get_version = [](int* version) { return *version = 22809, int(NcclLibrary::success); };
  l.error_string = [](int result) { return result == 2 ? "unhandled system error" : "another error"; };
  l.last_error = [](void*) { return "the cable was pulled"; };
  l.make_id = [](NcclLibrary::Id* id) {
    const std::lock_guard lock(now()->mutex_);
    std::snprintf(id->bytes, sizeof id->bytes, "group %d", now()->ids_++);
    return int(NcclLibrary::success);
  };
  l.init_rank = [](void** group, int ranks, NcclLibrary::Id id, int rank) {
    if (const int result = now()->faults.init_result) return result;
    const std::lock_guard lock(now()->mutex_);
    Meeting& meeting = now()->meetings_[id.bytes];
    meeting.size = ranks;
    *group = std::make_unique<Group>(Group{meeting, *backend_of_thread(), rank, {}}).release();
    return int(NcclLibrary::success);
  };
  l.destroy = [](void* group) {
    const std::unique_ptr<Group> ended(static_cast<Group*>(group));
    return ++now()->faults.destroyed, int(NcclLibrary::success);
  };
  l.abort = [](void* group) {
    const std::unique_ptr<Group> ended(static_cast<Group*>(group));
    return ++now()->faults.aborted, int(NcclLibrary::success);
  };
  l.async_error = [](void*, int* error) { return *error = now()->faults.async_error, int(NcclLibrary::success); };
  l.group_start = [] { return ++depth(), int(NcclLibrary::success); };
  l.group_end = [] {
    if (--depth() == 0 && !open_groups().empty()) now()->run(*open_groups()[0]);
    if (depth() == 0) open_groups().clear();
    return int(NcclLibrary::success);
  };
  l.all_gather = [](const void* mine, void* all, size_t n, int type, void* g, void*) {
    return give(g, {Op::all_gather, mine, all, n * width(type), 0});
  };
  l.broadcast = [](const void* from, void* to, size_t n, int type, int root, void* g, void*) {
    return give(g, {Op::broadcast, from, to, n * width(type), root});
  };
  l.send = [](const void* from, size_t n, int type, int to, void* g, void*) {
    return give(g, {Op::send, from, nullptr, n * width(type), to});
  };
  l.receive = [](void* to, size_t n, int type, int from, void* g, void*) {
    return give(g, {Op::receive, nullptr, to, n * width(type), from});
  };
  l.current_context = [](void** context) { return *context = &now()->faults, 0; };
  l.set_context = [](void*) { return 0; };
  l.stream_query = [](void*) { return now()->faults.stream_busy ? 600 : 0; };
  l.seconds_to_end = 0;
  return l;
}

}  // namespace tessera
