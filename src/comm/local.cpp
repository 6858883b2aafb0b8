// Ranks as threads of one process. Every exchange is: show a pointer on the group's board, meet, read the others' pointers, meet again.
#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "comm/comm.h"
#include "comm/lost_ranks.h"
#include "comm/pages.h"
#include "comm/sum.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

// Thrown where a rank is woken because another rank or thread has failed; never the first cause.
struct Woken : Error {
  Woken() : Error("the run was ended by another rank") {}
};

using Activities = std::vector<std::atomic<Activity>>;  // of the ranks of the run, each written by its main thread

class Board {
 public:
  // members: ranks of the run; doing: outlives this.
  Board(std::mutex& mutex, std::vector<int> members, const Activities& doing, bool ended)
      : mutex_(mutex), members_(std::move(members)), doing_(doing), shown_(members_.size()), here_(members_.size()), ended_(ended) {}
  int size() const { return int(shown_.size()); }
  int member(int rank) const { return members_[size_t(rank)]; }

  // Shows `mine` to the group and calls read(all shown) while all of it is valid. Returns when every rank has read.
  template <class Read>
  void exchange(const char* call, double seconds, int rank, const void* mine, Read read) {
    std::unique_lock lock(mutex_);
    shown_[rank] = mine;
    meet(lock, call, seconds, rank);
    if (ended_) leave(lock);
    ++reading_;
    lock.unlock();
    read(shown_);
    lock.lock();
    --reading_;
    if (ended_) changed_.notify_all();
    meet(lock, call, seconds, rank);
  }

  void end() {  // REQUIRES: the mutex is held
    ended_ = true;
    changed_.notify_all();
  }

 private:
  void meet(std::unique_lock<std::mutex>& lock, const char* call, double seconds, int rank) {
    if (ended_) leave(lock);
    const uint64_t round = round_;
    here_[rank] = true;
    if (++arrived_ == size()) {
      arrived_ = 0;
      here_.assign(here_.size(), false);
      ++round_;
      changed_.notify_all();
      return;
    }
    const bool in_time = changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return round_ != round || ended_; });
    if (!in_time) {
      const std::string text = lost_ranks_text(str(call, ' ', round / 2 + 1), seconds, states());
      end();  // who comes later must not read what this rank takes away
      changed_.wait(lock, [&] { return reading_ == 0; });
      throw RankLost(text);
    }
    if (round_ == round) leave(lock);
  }

  std::vector<RankState> states() const {
    std::vector<RankState> all;
    for (size_t r = 0; r < members_.size(); ++r) all.push_back({members_[r], here_[r], true, doing_[size_t(members_[r])], ""});
    return all;
  }

  // What this rank has shown may be in use by others: it stays until they are through.
  [[noreturn]] void leave(std::unique_lock<std::mutex>& lock) {
    changed_.wait(lock, [&] { return reading_ == 0; });
    throw Woken();
  }

  std::mutex& mutex_;  // one for all boards of a run
  std::condition_variable changed_;
  const std::vector<int> members_;
  const Activities& doing_;
  std::vector<const void*> shown_;
  std::vector<bool> here_;
  int arrived_ = 0, reading_ = 0;
  uint64_t round_ = 0;
  bool ended_;
};

// What the ranks of one run have in common: it owns the boards until the run ends.
class Run {
 public:
  explicit Run(int ranks) : doing_(size_t(ranks)) {}
  Board* add_board(std::vector<int> members) {
    const std::lock_guard lock(mutex_);
    boards_.push_back(std::make_unique<Board>(mutex_, std::move(members), doing_, ended_));
    return boards_.back().get();
  }
  std::atomic<Activity>* doing(int rank) { return &doing_[size_t(rank)]; }
  void end(Board& board) {
    const std::lock_guard lock(mutex_);
    board.end();
  }
  void end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    for (auto& board : boards_) board->end();
  }

 private:
  std::mutex mutex_;
  bool ended_ = false;
  Activities doing_;
  std::vector<std::unique_ptr<Board>> boards_;
};

class LocalComm final : public Comm {
 public:
  LocalComm(Run& run, Board& board, int rank, double deadline) : run_(run), board_(board), rank_(rank), deadline_(deadline) {}
  int rank() const override { return rank_; }
  int size() const override { return board_.size(); }
  int node() const override { return 0; }
  int nodes() const override { return 1; }
  std::string describe() const override { return str("local threads, ", size(), size() == 1 ? " rank" : " ranks"); }

  void all_gather(std::byte* buffer, std::span<const Range> parts) override {
    assert(int(parts.size()) == size());
    exchange("all_gather", buffer, [&](const std::vector<const void*>& all) {
      for (int r = 0; r < size(); ++r)
        if (r != rank_ && parts[r].size())
          std::memcpy(buffer + parts[r].begin, static_cast<const std::byte*>(all[r]) + parts[r].begin, parts[r].size());
    });
  }

  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override {
    assert(int(parts.size()) == size());
    exchange("reduce_scatter", x, [&](const std::vector<const void*>& all) {
      const size_t n = parts[rank_].size(), block = 8192;
      for (size_t i = 0; i < n; i += block)
        for (const void* other : all) add_into(sum + i, static_cast<const float*>(other) + parts[rank_].begin + i, std::min(block, n - i));
    });
  }

  void broadcast(std::byte* buffer, size_t bytes, int root) override {
    exchange("broadcast", buffer, [&](const std::vector<const void*>& all) {
      if (rank_ != root && bytes) std::memcpy(buffer, all[root], bytes);
    });
  }

  void barrier() override {
    exchange("barrier", nullptr, [](const auto&) {});
  }

  std::unique_ptr<Comm> split(int color, int key) override {
    struct Ask {
      int color, key;
      Board* board = nullptr;
    } mine{color, key};
    std::vector<std::pair<int, int>> group;  // key, rank
    exchange("split", &mine, [&](const std::vector<const void*>& all) {
      for (int r = 0; r < size(); ++r) {
        const Ask& ask = *static_cast<const Ask*>(all[r]);
        if (ask.color == color) group.emplace_back(ask.key, r);
      }
    });
    std::sort(group.begin(), group.end());
    const int first = group[0].second;
    if (first == rank_) {
      std::vector<int> members;
      for (const auto& [its_key, r] : group) members.push_back(board_.member(r));
      mine.board = run_.add_board(std::move(members));
    }
    Board* board = nullptr;
    exchange("split", &mine, [&](const std::vector<const void*>& all) { board = static_cast<const Ask*>(all[first])->board; });
    const auto me = std::find(group.begin(), group.end(), std::pair(key, rank_));
    return std::make_unique<LocalComm>(run_, *board, int(me - group.begin()), deadline_);
  }

  Buffer shared_window(size_t bytes) override {
    int file = rank_ == 0 ? memory_file(bytes) : -1;
    const int* shown = &file;
    exchange("shared_window", shown, [&](const std::vector<const void*>& all) { file = *static_cast<const int*>(all[0]); });
    Buffer pages = file_pages(file, bytes);
    barrier();  // all have mapped it
    if (rank_ == 0) close_file(file);
    return pages;
  }

  void abort(int code) override {
    run_.end();
    throw Error(str("rank ", rank_, " ended the run with exit code ", code));
  }
  void interrupt() override { run_.end(board_); }
  void set_deadline(double seconds) override { deadline_ = seconds; }
  double deadline() const override { return deadline_; }

 private:
  template <class Read>
  void exchange(const char* call, const void* mine, Read read) {
    board_.exchange(call, deadline_, rank_, mine, read);
  }

  Run& run_;
  Board& board_;
  int rank_;
  double deadline_;
};

}  // namespace

void run_local_ranks(int n, const std::function<void(Comm&)>& f) {
  assert(n > 0);
  Run run(n);
  std::vector<int> members(n);
  std::iota(members.begin(), members.end(), 0);
  Board& board = *run.add_board(std::move(members));
  std::mutex mutex;
  std::exception_ptr cause, woken;
  const auto note = [&](std::exception_ptr& place) {
    const std::lock_guard lock(mutex);
    if (!place) place = std::current_exception();
  };
  const auto rank_main = [&](int rank) {
    LocalComm comm(run, board, rank, default_deadline);
    Doing::show(run.doing(rank));
    try {
      f(comm);
      return;
    } catch (const Woken&) {
      note(woken);
    } catch (...) {
      note(cause);
    }
    run.end();
  };
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) threads.emplace_back(rank_main, r);
  for (auto& t : threads) t.join();
  if (cause) std::rethrow_exception(cause);
  if (woken) std::rethrow_exception(woken);
}

}  // namespace tessera
