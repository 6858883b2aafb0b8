// Mover: one thread with a group of its own that does gathers in the order in which they are posted. Inside fsdp only.
#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "comm/comm.h"

namespace tessera {

class Mover {
 public:
  using Ticket = uint64_t;  // the n-th job; 0: none

  explicit Mover(std::unique_ptr<Comm>);
  ~Mover();  // does what is still posted, except when an exception is on its way: then it gives up the group
  Mover(const Mover&) = delete;
  Mover& operator=(const Mover&) = delete;

  Ticket post(std::function<void(Comm&)> job);
  void wait(Ticket);  // until that job is done; rethrows the error that ended the thread
  void wait_all();

 private:
  void run();

  std::unique_ptr<Comm> comm_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void(Comm&)>> jobs_;
  Ticket posted_ = 0, done_ = 0;
  bool closing_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace tessera
