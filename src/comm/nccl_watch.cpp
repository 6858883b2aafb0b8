#include "comm/nccl_watch.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "comm/blocking_call.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr double meeting_pause = 0.02;  // seconds between two meetings: what is exchanged in between is one of them
constexpr double look_pause = 0.05;     // between two looks at the GPU
constexpr double grace = 1.5;           // times the deadline: a rank that is missing is found before
constexpr double abort_patience = 5;    // for a call of NCCL that is under way

const char* const resume =
    "see what the ranks and their machines are doing; --resume_from_checkpoint auto goes on from the last checkpoint";

// The text of a meeting that failed, as that of the exchange: "all_gather 57" is the meeting's name for itself.
std::string renamed(std::string text, int64_t exchange) {
  const std::string call = "all_gather ";
  const size_t begin = text.find(call);
  if (begin == text.npos) return text;
  const size_t end = text.find_first_not_of("0123456789", begin + call.size());
  return text.replace(begin, std::min(end, text.size()) - begin, str("exchange ", exchange, " of the GPUs"));
}

}  // namespace

std::string nccl_error_text(const NcclLibrary& library, NcclLibrary::Group group, const std::string& call, int result, int rank) {
  std::string given = str(call, ": ", library.error_string(result));
  const char* const more = library.last_error ? library.last_error(group) : nullptr;
  if (more && *more) given += str(" (", trim(more), ")");
  return error_text(str("NCCL, rank ", rank), given, "GPUs that reach each other, one for each rank",
                    "set NCCL_DEBUG=WARN to see more; NCCL_P2P_DISABLE=1 or NCCL_SHM_DISABLE=1 where a way between GPUs is broken; "
                    "--resume_from_checkpoint auto goes on from the last checkpoint");
}

NcclWatch::NcclWatch(std::unique_ptr<Comm> host, const NcclLibrary& library, NcclLibrary::Group group, NcclLibrary::Stream stream)
    : host_(std::move(host)), library_(library), group_(group), stream_(stream), deadline_(host_->deadline()) {
  if (library_.stream_query && library_.current_context(&context_) != 0) context_ = nullptr;
  meeting_ = std::thread([this] { meet(); });
  observing_ = std::thread([this] { observe(); });
}

NcclWatch::~NcclWatch() {
  const bool failing = std::uncaught_exceptions() > 0;
  if (failing) host_->interrupt();
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  meeting_.join();
  observing_.join();
  if (aborted_) return;
  failing || !lost_.empty() ? library_.abort(group_) : library_.destroy(group_);
}

void NcclWatch::issue() {
  const std::lock_guard lock(mutex_);
  ++issued_;
  changed_.notify_all();
}

void NcclWatch::throw_if_lost() {
  const std::lock_guard lock(mutex_);
  if (!lost_.empty()) throw RankLost(lost_);
}

void NcclWatch::interrupt() {
  host_->interrupt();
  lose("the group of the GPUs was interrupted", false);
}

// The exchange that will not end keeps the GPU and, sooner or later, the thread that waits for it: NCCL is told to give it up. A thread
// inside NCCL must be out of it first.
void NcclWatch::lose(const std::string& text, bool ends_process) {
  {
    const std::lock_guard lock(mutex_);
    if (!lost_.empty()) return;
    lost_ = text;
  }
  changed_.notify_all();
  if (ends_process && library_.seconds_to_end > 0) end_later(text, library_.seconds_to_end);
  std::unique_lock calling(calling_, std::chrono::duration<double>(abort_patience));
  if (!calling) return;
  library_.abort(group_);
  const std::lock_guard lock(mutex_);
  aborted_ = true;
}

// Who has given more exchanges than all have together comes to a meeting and learns how far the others are.
void NcclWatch::meet() {
  int64_t exchange = 0;
  try {
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return issued_ > met_ || ending_ || !lost_.empty(); });
        if (!lost_.empty() || issued_ == met_) return;
        exchange = issued_;
      }
      host_->set_deadline(deadline_);
      const std::vector<int64_t> all = gather_values(*host_, exchange);
      std::unique_lock lock(mutex_);
      met_ = *std::min_element(all.begin(), all.end());
      changed_.wait_for(lock, std::chrono::duration<double>(meeting_pause), [&] { return ending_ || !lost_.empty(); });
    }
  } catch (const RankLost& e) {
    lose(renamed(e.what(), exchange), true);
  } catch (const std::exception& e) {
    lose(e.what(), false);
  }
}

bool NcclWatch::over_after(double seconds) {
  std::unique_lock lock(mutex_);
  const auto over = [&] { return (ending_ && issued_ == met_) || !lost_.empty(); };
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds), over);
}

// What NCCL has noticed since the calls returned; "" when nothing. Not asked while a call is under way: that one tells.
std::string NcclWatch::error_under_way() {
  const std::unique_lock calling(calling_, std::try_to_lock);
  if (!calling || aborted_) return "";
  int error = NcclLibrary::success;
  const int result = library_.async_error(group_, &error);
  if (result != NcclLibrary::success) error = result;
  if (error == NcclLibrary::success || error == NcclLibrary::in_progress) return "";
  return nccl_error_text(library_, group_, "an exchange that was under way", error, host_->rank());
}

// A stream stands still when it is never seen idle although nothing was added to it for long.
void NcclWatch::observe() {
  using Clock = std::chrono::steady_clock;
  if (context_) library_.set_context(context_);
  Clock::time_point moved = Clock::now();
  int64_t seen = 0;
  while (!over_after(look_pause)) {
    if (const std::string text = error_under_way(); !text.empty()) return lose(text, true);
    constexpr int busy = 600;
    const bool idle = !context_ || library_.stream_query(stream_) != busy;
    {
      const std::lock_guard lock(mutex_);
      if (idle || issued_ != seen || issued_ != met_) moved = Clock::now();
      seen = issued_;
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - moved).count();
    if (seconds > deadline_ * grace)
      return lose(error_text(str("exchange ", seen, " of the GPUs"),
                             str("takes longer than ", deadline_.load(), " s although every rank has begun it"),
                             str("exchanges of less than --comm_timeout ", deadline_.load(), " s"), resume),
                  true);
  }
}

}  // namespace tessera
