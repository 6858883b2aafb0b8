// A call that waits for other ranks and cannot be asked to stop. When it takes longer than `seconds`, the process says so and ends with
// exit_rank_lost; the launcher then ends the others. Inside comm only.
#pragma once
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace tessera {

class BlockingCall {
 public:
  BlockingCall(std::string what, double seconds);
  ~BlockingCall();  // the call has returned
  BlockingCall(const BlockingCall&) = delete;
  BlockingCall& operator=(const BlockingCall&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool returned_ = false;
  std::thread thread_;
};

// Ends this process with exit_rank_lost after so many seconds, whatever its threads wait for then; says `why` first.
void end_later(const std::string& why, double seconds);

}  // namespace tessera
