// Activity: what a thread is doing, in one word, for messages about ranks that wait for each other. Entering and leaving cost a few
// instructions; other threads and processes may look on.
#pragma once
#include <atomic>
#include <cstdint>

namespace tessera {

enum class Activity : uint8_t {
  starting,
  reading_data,
  loading,
  training,
  forward,
  recompute,
  head,
  backward,
  optimizer,
  evaluating,
  saving,
  gathering,
  ending
};
const char* name_of(Activity);  // "reading data"

// This thread does it until the end of the scope; then again what it did before.
class Doing {
 public:
  explicit Doing(Activity);
  ~Doing();
  Doing(const Doing&) = delete;
  Doing& operator=(const Doing&) = delete;
  static Activity now();  // of this thread; starting before the first scope
  // From here on this thread's activity is also written to `place`, until it is called with null.
  static void show(std::atomic<Activity>* place);

 private:
  const Activity before_;
};

}  // namespace tessera
