#include "fsdp/mover.h"

#include "core/activity.h"

namespace tessera {

Mover::Mover(std::unique_ptr<Comm> comm) : comm_(std::move(comm)), thread_([this] { run(); }) {}

Mover::~Mover() {
  if (std::uncaught_exceptions() > 0) comm_->interrupt();
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Mover::Ticket Mover::post(std::function<void(Comm&)> job) {
  const std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
  changed_.notify_all();
  return ++posted_;
}

void Mover::wait(Ticket ticket) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ >= ticket || error_; });
  if (done_ < ticket) std::rethrow_exception(error_);
}

void Mover::wait_all() { wait(posted_); }  // only the posting thread writes posted_

void Mover::run() {
  const Doing gathering(Activity::gathering);
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return closing_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    const auto job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      job(*comm_);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error)
      error_ = error;
    else
      ++done_;
    changed_.notify_all();
    if (error) return;
  }
}

}  // namespace tessera
