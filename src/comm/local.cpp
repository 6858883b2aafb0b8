// Ranks as threads of one process. Every exchange is: show a pointer on the group's board, meet, read the others' pointers, meet again.
#include <algorithm>
#include <cassert>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "comm/comm.h"
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

class Board {
 public:
  Board(std::mutex& mutex, int size, bool ended) : mutex_(mutex), shown_(size), ended_(ended) {}
  int size() const { return int(shown_.size()); }

  // Shows `mine` to the group and calls read(all shown) while all of it is valid. Returns when every rank has read.
  template <class Read>
  void exchange(int rank, const void* mine, Read read) {
    std::unique_lock lock(mutex_);
    shown_[rank] = mine;
    meet(lock);
    if (ended_) leave(lock);
    ++reading_;
    lock.unlock();
    read(shown_);
    lock.lock();
    --reading_;
    if (ended_) changed_.notify_all();
    meet(lock);
  }

  void end() {  // REQUIRES: the mutex is held
    ended_ = true;
    changed_.notify_all();
  }

 private:
  void meet(std::unique_lock<std::mutex>& lock) {
    if (ended_) leave(lock);
    const uint64_t round = round_;
    if (++arrived_ == size()) {
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return round_ != round || ended_; });
    if (round_ == round) leave(lock);
  }

  // What this rank has shown may be in use by others: it stays until they are through.
  [[noreturn]] void leave(std::unique_lock<std::mutex>& lock) {
    changed_.wait(lock, [&] { return reading_ == 0; });
    throw Woken();
  }

  std::mutex& mutex_;  // one for all boards of a run
  std::condition_variable changed_;
  std::vector<const void*> shown_;
  int arrived_ = 0, reading_ = 0;
  uint64_t round_ = 0;
  bool ended_;
};

// What the ranks of one run have in common: it owns the boards until the run ends.
class Run {
 public:
  Board* add_board(int size) {
    const std::lock_guard lock(mutex_);
    boards_.push_back(std::make_unique<Board>(mutex_, size, ended_));
    return boards_.back().get();
  }
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
  std::vector<std::unique_ptr<Board>> boards_;
};

class LocalComm final : public Comm {
 public:
  LocalComm(Run& run, Board& board, int rank) : run_(run), board_(board), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return board_.size(); }
  int node() const override { return 0; }
  int nodes() const override { return 1; }
  std::string describe() const override { return str("local threads, ", size(), size() == 1 ? " rank" : " ranks"); }

  void all_gather(std::byte* buffer, std::span<const Range> parts) override {
    assert(int(parts.size()) == size());
    board_.exchange(rank_, buffer, [&](const std::vector<const void*>& all) {
      for (int r = 0; r < size(); ++r)
        if (r != rank_ && parts[r].size())
          std::memcpy(buffer + parts[r].begin, static_cast<const std::byte*>(all[r]) + parts[r].begin, parts[r].size());
    });
  }

  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override {
    assert(int(parts.size()) == size());
    board_.exchange(rank_, x, [&](const std::vector<const void*>& all) {
      const size_t n = parts[rank_].size(), block = 8192;
      for (size_t i = 0; i < n; i += block)
        for (const void* other : all) add_into(sum + i, static_cast<const float*>(other) + parts[rank_].begin + i, std::min(block, n - i));
    });
  }

  void broadcast(std::byte* buffer, size_t bytes, int root) override {
    board_.exchange(rank_, buffer, [&](const std::vector<const void*>& all) {
      if (rank_ != root && bytes) std::memcpy(buffer, all[root], bytes);
    });
  }

  void barrier() override {
    board_.exchange(rank_, nullptr, [](const auto&) {});
  }

  std::unique_ptr<Comm> split(int color, int key) override {
    struct Ask {
      int color, key;
      Board* board = nullptr;
    } mine{color, key};
    std::vector<std::pair<int, int>> group;  // key, rank
    board_.exchange(rank_, &mine, [&](const std::vector<const void*>& all) {
      for (int r = 0; r < size(); ++r) {
        const Ask& ask = *static_cast<const Ask*>(all[r]);
        if (ask.color == color) group.emplace_back(ask.key, r);
      }
    });
    std::sort(group.begin(), group.end());
    const int first = group[0].second;
    if (first == rank_) mine.board = run_.add_board(int(group.size()));
    Board* board = nullptr;
    board_.exchange(rank_, &mine, [&](const std::vector<const void*>& all) { board = static_cast<const Ask*>(all[first])->board; });
    const auto me = std::find(group.begin(), group.end(), std::pair(key, rank_));
    return std::make_unique<LocalComm>(run_, *board, int(me - group.begin()));
  }

  Buffer shared_window(size_t bytes) override {
    int file = rank_ == 0 ? memory_file(bytes) : -1;
    const int* shown = &file;
    board_.exchange(rank_, shown, [&](const std::vector<const void*>& all) { file = *static_cast<const int*>(all[0]); });
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

 private:
  Run& run_;
  Board& board_;
  int rank_;
};

}  // namespace

void run_local_ranks(int n, const std::function<void(Comm&)>& f) {
  assert(n > 0);
  Run run;
  Board& board = *run.add_board(n);
  std::mutex mutex;
  std::exception_ptr cause, woken;
  const auto note = [&](std::exception_ptr& place) {
    const std::lock_guard lock(mutex);
    if (!place) place = std::current_exception();
  };
  const auto rank_main = [&](int rank) {
    LocalComm comm(run, board, rank);
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
