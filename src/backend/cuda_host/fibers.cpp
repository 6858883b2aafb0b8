#include <sys/mman.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <vector>

#include "backend/cuda_host/kernel.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/text.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace tessera::cuda_host {

constinit thread_local ThreadState* self = nullptr;

namespace {

constexpr size_t stack_bytes = size_t(128) << 10, page = 4096;
constexpr int most_threads = 1024;

enum class Waits { no, at_warp, at_block, ended };

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ThreadState state;
  void* stack_pointer = nullptr;
  std::byte* stack = nullptr;
  void* fake_stack = nullptr;  // of AddressSanitizer
  Waits waits = Waits::ended;
  Site site;
  int shows = 0;  // how many times it has shown
  Shown shown[2];
  std::vector<Copy> copies;               // of the open group
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

// One for each thread of the host that runs kernels.
struct Machine {
  std::vector<Fiber> fibers;
  std::vector<int> warps, lanes;  // the order in which they run
  void* scheduler = nullptr;      // its stack pointer
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;
  std::vector<std::byte> shared;
  ~Machine() {
    for (Fiber& f : fibers) {
#if defined(__SANITIZE_ADDRESS__)
      ASAN_UNPOISON_MEMORY_REGION(f.stack, stack_bytes);  // its marks would stay for what lies there next
#endif
      munmap(f.stack - page, stack_bytes + page);
    }
  }
};
thread_local Machine machine;
thread_local Fiber* running = nullptr;

// Saves what a call must keep, exchanges stacks, restores.
extern "C" void tessera_switch_stack(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl tessera_switch_stack
.type tessera_switch_stack, @function
tessera_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tessera_switch_stack, .-tessera_switch_stack
)");
#else
#error "kernels on the host know x86-64 alone; configure with -DTESSERA_TESTS=OFF"
#endif

void switch_to_fiber(Fiber& f) {
  running = &f;
  self = &f.state;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, f.stack, stack_bytes);
#endif
  tessera_switch_stack(&machine.scheduler, f.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
  running = nullptr;
  self = nullptr;
}

void switch_to_scheduler(Waits waits) {
  Fiber& f = *running;
  f.waits = waits;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(waits == Waits::ended ? nullptr : &f.fake_stack, machine.scheduler_stack, machine.scheduler_stack_bytes);
#endif
  tessera_switch_stack(&f.stack_pointer, machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
#endif
}

void fiber_entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
  try {
    (*machine.body)();
  } catch (...) {
    machine.error = std::current_exception();
  }
  switch_to_scheduler(Waits::ended);
}

void make_fibers(int count) {
  while (int(machine.fibers.size()) < count) {
    void* memory = mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("a kernel on the host", "no memory for its threads' stacks", "128 KiB each", "free some memory");
    mprotect(memory, page, PROT_NONE);
    machine.fibers.emplace_back();
    machine.fibers.back().stack = static_cast<std::byte*>(memory) + page;
  }
}

void start(Fiber& f) {
  auto* top = reinterpret_cast<void**>(f.stack + stack_bytes);
  *--top = nullptr;  // where a caller would be
  *--top = reinterpret_cast<void*>(fiber_entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.stack_pointer = top;
  f.fake_stack = nullptr;
  f.waits = Waits::no;
  f.shows = 0;
  f.copies.clear();
  f.groups.clear();
}

std::string where(Site s) { return str(s.file_name(), ":", s.line(), " (", s.function_name(), ")"); }

[[noreturn]] void stuck(const Fiber& a, const Fiber& b) {
  const auto said = [](const Fiber& f) {
    return str("thread ", f.state.thread.x + f.state.threads.x * f.state.thread.y,
               f.waits == Waits::ended ? " has ended" : " waits at " + where(f.site));
  };
  fail("a kernel on the host", str(said(a), ", ", said(b)), "barriers that all threads of a block or warp reach", "mend the kernel");
}

// Runs a warp until all its threads wait for the block or have ended.
void run_warp(int first, int last) {
  for (;;) {
    for (const int lane : machine.lanes) {
      if (first + lane >= last) continue;
      Fiber& f = machine.fibers[size_t(first + lane)];
      if (f.waits == Waits::no) switch_to_fiber(f);
      if (machine.error) return;
    }
    const Fiber* at_warp = nullptr;
    const Fiber* other = nullptr;
    for (int i = first; i < last; ++i) {
      const Fiber& f = machine.fibers[size_t(i)];
      (f.waits == Waits::at_warp ? at_warp : other) = &f;
    }
    if (!at_warp) return;
    if (other) stuck(*at_warp, *other);
    for (int i = first; i < last; ++i) machine.fibers[size_t(i)].waits = Waits::no;
  }
}

// False when all have ended.
bool pass_barrier(int count) {
  const Fiber& first = machine.fibers[0];
  for (int i = 1; i < count; ++i) {
    const Fiber& f = machine.fibers[size_t(i)];
    if (f.waits != first.waits ||
        (f.waits == Waits::at_block && (f.site.line() != first.site.line() || f.site.column() != first.site.column())))
      stuck(first, f);
  }
  if (first.waits == Waits::ended) return false;
  for (int i = 0; i < count; ++i) machine.fibers[size_t(i)].waits = Waits::no;
  return true;
}

void shuffle(std::vector<int>& order, int count, uint64_t seed, uint64_t stream) {
  order.resize(size_t(count));
  std::iota(order.begin(), order.end(), 0);
  const Rng rng(seed, Purpose::shuffle, "threads", stream);
  for (int i = count - 1; i > 0; --i) std::swap(order[size_t(i)], order[size_t(rng.below(uint64_t(i), uint64_t(i) + 1))]);
}

void run_block(int count) {
  for (int i = 0; i < count; ++i) start(machine.fibers[size_t(i)]);
  do {
    for (const int w : machine.warps) {
      run_warp(w * 32, std::min(count, w * 32 + 32));
      if (machine.error) std::rethrow_exception(std::exchange(machine.error, nullptr));
    }
  } while (pass_barrier(count));
}

}  // namespace

void run_blocks(const Grid& grid, const std::function<void()>& body, uint64_t seed) {
  const int count = int(grid.threads.x * grid.threads.y * grid.threads.z);
  if (count < 1 || count > most_threads)
    kernel_error(str("is launched with ", count, " threads in a block; 1 to 1024 are possible"), Site());
  make_fibers(count);
  machine.body = &body;
  machine.shared.resize(grid.shared + 128);
  auto* shared = machine.shared.data();
  shared += (128 - reinterpret_cast<uintptr_t>(shared) % 128) % 128;
  uint64_t block = 0;
  for (unsigned z = 0; z < grid.blocks.z; ++z)
    for (unsigned y = 0; y < grid.blocks.y; ++y)
      for (unsigned x = 0; x < grid.blocks.x; ++x, ++block) {
        std::memset(shared, 0xff, grid.shared);
        if (block % 8 == 0) {  // a new order now and then: making one takes longer than a small block
          shuffle(machine.warps, (count + 31) / 32, seed, 2 * block);
          shuffle(machine.lanes, 32, seed, 2 * block + 1);
        }
        for (int i = 0; i < count; ++i) {
          const auto n = unsigned(i);
          machine.fibers[size_t(i)].state = {
              {n % grid.threads.x, n / grid.threads.x % grid.threads.y, n / (grid.threads.x * grid.threads.y)},
              {x, y, z},
              grid.threads,
              grid.blocks,
              i / 32,
              i % 32,
              shared,
              grid.shared};
        }
        run_block(count);
      }
}

void kernel_error(const std::string& what, Site site) {
  fail("a kernel on the host", str(where(site), " ", what), "what the contract in backend/cuda/device.h says",
       "mend the kernel or its launch");
}

void meet_block(Site site) {
  running->site = site;
  switch_to_scheduler(Waits::at_block);
}

void meet_warp(Site site) {
  running->site = site;
  switch_to_scheduler(Waits::at_warp);
}

void show(const Shown& mine, Site site) {
  running->shown[++running->shows % 2] = mine;
  meet_warp(site);
}

const Shown& shown_by(int lane) {
  const Fiber& f = machine.fibers[size_t(running->state.warp * 32 + lane)];
  return f.shown[running->shows % 2];
}

void check_tile_row(const void* row, Site site) {
  const auto* p = static_cast<const std::byte*>(row);
  if (p < self->shared || p + 16 > self->shared + self->shared_bytes) kernel_error("names an address outside shared memory", site);
  if (reinterpret_cast<uintptr_t>(row) % 16) kernel_error("names an address that is not a multiple of 16", site);
}

void later_copy(void* to, const void* from, bool valid) { running->copies.push_back({to, from, valid}); }
void commit_copies() { running->groups.push_back(std::exchange(running->copies, {})); }
void do_copies(int groups_left) {
  auto& groups = running->groups;
  while (int(groups.size()) > groups_left) {
    for (const Copy& c : groups.front()) {
      if (c.valid)
        std::memcpy(c.to, c.from, 16);
      else
        std::memset(c.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace tessera::cuda_host
