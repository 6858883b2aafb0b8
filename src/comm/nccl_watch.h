// NcclWatch: what NCCL does not do: it notices that an exchange on the GPUs will never end, says why, and ends it. Two threads:
// - one meets those of the other ranks in a host group after exchanges were given to the GPUs. A rank whose host does not come to an
//   exchange that others have begun is missed there, with the deadline and the roll call of that group;
// - one asks NCCL for errors and, where the driver can be asked, whether the stream still moves.
// Inside comm only.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "comm/comm.h"
#include "comm/nccl_library.h"

namespace tessera {

class NcclWatch {
 public:
  // Owns `host`, for itself alone, and `group`.
  NcclWatch(std::unique_ptr<Comm> host, const NcclLibrary&, NcclLibrary::Group group, NcclLibrary::Stream);
  ~NcclWatch();  // waits for the other ranks to come as far as this one; while an exception is on its way it gives up the group
  NcclWatch(const NcclWatch&) = delete;
  NcclWatch& operator=(const NcclWatch&) = delete;

  // Calls give(group), which hands an exchange to the GPUs, and counts it. Throws RankLost when the group is lost.
  template <class Give>
  void exchange(Give give) {
    const std::lock_guard calling(calling_);
    throw_if_lost();
    give(group_);
    issue();
  }
  void interrupt();
  void set_deadline(double seconds) { deadline_ = seconds; }

 private:
  void issue();
  void throw_if_lost();
  void meet();
  void meet_once();
  void observe();
  std::string error_under_way();
  void lose(const std::string& text, bool ends_process);
  bool over_after(double seconds);

  std::unique_ptr<Comm> host_;
  const NcclLibrary& library_;
  const NcclLibrary::Group group_;
  const NcclLibrary::Stream stream_;
  std::atomic<double> deadline_;
  void* context_ = nullptr;
  std::timed_mutex calling_;  // held in calls of NCCL with this group
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t issued_ = 0, met_ = 0;  // exchanges of this rank; of all ranks
  bool ending_ = false, aborted_ = false;
  std::string lost_;
  std::thread meeting_, observing_;
};

std::string nccl_error_text(const NcclLibrary&, NcclLibrary::Group, const std::string& call, int result, int rank);

}  // namespace tessera
