// DryComm: one rank of a group that is not there. Every exchange returns at once and leaves memory as it is; how many bytes this rank would
// have received is counted, also of the groups split from it. For the memory plan.
#pragma once
#include <atomic>

#include "comm/comm.h"
#include "core/ledger.h"

namespace tessera {

struct DryTraffic {
  std::atomic<int64_t> gathered = 0, reduced = 0;  // bytes this rank receives
};

class DryComm final : public Comm {
 public:
  // gpu: the ledger of a GPU whose memory a group of GPUs takes for its sums; null: none is taken.
  DryComm(int rank, int ranks, int nodes, DryTraffic& traffic, Ledger* gpu = nullptr)
      : rank_(rank), size_(ranks), nodes_(nodes), traffic_(traffic), gpu_(gpu) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int node() const override { return int(int64_t(rank_) * nodes_ / size_); }
  int nodes() const override { return nodes_; }
  std::string describe() const override { return "dry"; }

  void all_gather(std::byte* buffer, std::span<const Range> parts) override;
  void all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte* mine) override;
  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override;
  void broadcast(std::byte*, size_t, int) override {}
  void barrier() override {}
  std::unique_ptr<Comm> split(int color, int key) override;  // all of them
  Buffer shared_window(size_t bytes) override;               // addresses only
  void abort(int code) override;
  void interrupt() override {}

 private:
  const int rank_, size_, nodes_;
  DryTraffic& traffic_;
  Ledger* const gpu_;
  size_t exchange_ = 0;  // bytes of the GPU held for sums
  Charge exchange_charge_;
};

}  // namespace tessera
