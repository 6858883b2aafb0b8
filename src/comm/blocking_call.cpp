#include "comm/blocking_call.h"

#include <chrono>
#include <cstdlib>

#include "comm/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"

namespace tessera {

BlockingCall::BlockingCall(std::string what, double seconds)
    : thread_([this, what = std::move(what), seconds] {
        std::unique_lock lock(mutex_);
        if (changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return returned_; })) return;
        complain(error_text(what, str("not all ranks have come within ", seconds, " s"), "all ranks start and end together",
                            "see which rank's process is missing or stopped"));
        std::_Exit(exit_rank_lost);
      }) {}

BlockingCall::~BlockingCall() {
  {
    const std::lock_guard lock(mutex_);
    returned_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void end_later(const std::string& why, double seconds) {
  std::thread([why, seconds] {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    complain(why);
    std::_Exit(exit_rank_lost);
  }).detach();
}

}  // namespace tessera
