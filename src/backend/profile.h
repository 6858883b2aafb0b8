// Profile: where the time of training steps goes, by operation, by shape and by phase. It exists only while a run is profiled; without one
// every scope here is a test of a null pointer, and operations are not wrapped at all.
//
// A Profile belongs to one rank and to the thread that made it: steps, phases and the sums are those of that thread. Other threads (the one
// that gathers weights ahead) may record operations, too: their time passes beside the step and is kept apart.
// Operations must be finished when they return.
#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/activity.h"
#include "core/dtype.h"

namespace tessera {

// One kind of call: what it works on, and the least it has to do. Bytes: each operand read once, each result written once. FLOPs are
// counted for products and attention only; what else is done to a number is hidden behind moving it.
struct Operation {
  static constexpr int most_sizes = 10;
  const char* name = "";    // a literal
  const char* layout = "";  // a literal; of a product: "nt" is a * b^T
  Dtype dtype = Dtype::f32;
  bool accumulates = false, four_bit = false, drops = false;
  int rank = 0, added_from = most_sizes;    // sizes from added_from on are parts of one sum
  std::array<int64_t, most_sizes> sizes{};  // of a product: m, n, k of each term
  double flops = 0, bytes = 0;
  bool operator==(const Operation&) const = default;
  std::string shapes() const;  // "512x576x1536+16 nt 4-bit +="
};

// What this machine can do, in FLOP/s and bytes/s: the best that this program itself reached when it was measured.
struct ProfileLimits {
  double f32 = 0, bf16 = 0, bytes = 0;
  double seconds(const Operation&) const;  // the larger of FLOPs and bytes over their limit
};

enum class Phase : uint8_t { other, forward, recompute, backward, head, optimizer, communication };
constexpr size_t phase_count = 7;
const char* name_of(Phase);

// The mean of some steps, in seconds. The phases add up to the step: each holds the time when it was the innermost one.
struct StepProfile {
  struct Row {
    Operation operation;
    double calls = 0, seconds = 0;  // per step
  };
  struct PhaseRow {
    double seconds = 0, in_operations = 0;
  };
  int64_t first_step = 0, last_step = 0, steps = 0;
  double seconds = 0;
  std::vector<Row> operations;  // of the thread of the steps, in the order of their first call
  std::vector<Row> beside;      // of other threads
  std::array<PhaseRow, phase_count> phases;
};

class Profile {
 public:
  static constexpr int64_t left_out = 2;         // first steps that do not count: they prepare products and touch pages
  static constexpr size_t most_events = 100000;  // the trace ends with the step that reaches it

  explicit Profile(int rank);  // becomes current() of this thread. REQUIRES: there is none
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;
  static Profile* current();  // of this thread; null when it is not profiled
  static int64_t now();       // nanoseconds of a steady clock

  int rank() const { return rank_; }
  int64_t start() const { return start_; }
  ProfileLimits limits;

  // Time outside steps is not recorded. REQUIRES (steps and phases): called on the thread of this profile.
  void begin_step(int64_t number);
  void end_step();
  void enter(Phase);
  void leave();
  void record(const Operation&, int64_t begin, int64_t end);

  // Over the steps from the third on; over all of them when there are no more than two.
  StepProfile average() const;
  int64_t traced_steps() const { return traced_steps_; }
  // The events of Chrome's trace format, without the brackets around them; times count from `origin`, the process is the rank.
  std::string trace(int64_t origin) const;

 private:
  enum class Kind : uint8_t { operation, phase, step };
  struct Event {
    int64_t begin, end, what;  // what: index of the operation, phase, or number of the step
    Kind kind;
    uint8_t lane;
  };
  struct Use {
    int64_t calls = 0, time = 0;
  };
  struct Sums {
    int64_t first = 0, last = 0, steps = 0, time = 0;
    std::vector<Use> uses, beside;  // by operation
    std::array<int64_t, phase_count> phase{}, in_operations{};
  };
  struct Span {
    Phase phase;
    int64_t begin;
  };
  size_t index_of(const Operation&);
  uint8_t lane_of(std::thread::id);
  void charge(int64_t now);  // the time since the last change, to the innermost phase
  void keep(const Event& e) {
    if (tracing_) events_.push_back(e);
  }
  std::string text_of(const Event&, int64_t origin) const;

  const int rank_;
  const int64_t start_;
  mutable std::mutex mutex_;  // of all that record() touches
  std::vector<std::thread::id> threads_;
  std::vector<Operation> operations_;
  std::vector<size_t> table_;  // of index_of: open addressing, 0 is empty
  std::deque<Event> events_;
  std::vector<Span> open_;
  Sums sums_[2];  // of the steps left out, and of the others
  bool in_step_ = false, tracing_ = true;
  int64_t step_ = 0, step_begin_ = 0, changed_ = 0, steps_ = 0, traced_steps_ = 0;
};

// A span of the thread's profile, if it has one. A phase that is work is also what the thread is doing (core/activity.h).
class ProfileStep {
 public:
  explicit ProfileStep(int64_t number);
  ~ProfileStep();
  ProfileStep(const ProfileStep&) = delete;
  ProfileStep& operator=(const ProfileStep&) = delete;

 private:
  Profile* const profile_;
};

class ProfileScope {
 public:
  explicit ProfileScope(Phase);
  ~ProfileScope();
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  const Doing doing_;
  Profile* const profile_;
};

template <class F>
decltype(auto) in_phase(Phase phase, F&& f) {
  const ProfileScope scope(phase);
  return f();
}

// A whole file of Chrome's trace format from the events of each rank.
std::string trace_file(const std::vector<std::string>& events_of_ranks);

}  // namespace tessera
