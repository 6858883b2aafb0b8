// StagedComm: a device group for devices without NCCL: bytes pass through pinned host memory and the host's group. For the test device.
#pragma once
#include <array>

#include "comm/device_comm.h"

namespace tessera {

class StagedComm final : public Comm {
 public:
  StagedComm(Comm& host, Backend& backend) : host_(host), backend_(backend) {}  // both outlive this
  StagedComm(std::unique_ptr<Comm> owned, Backend& backend) : owned_(std::move(owned)), host_(*owned_), backend_(backend) {}
  ~StagedComm() override;
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  int node() const override { return host_.node(); }
  int nodes() const override { return host_.nodes(); }
  std::string describe() const override { return host_.describe() + ", exchanges through host memory"; }

  void all_gather(std::byte* buffer, std::span<const Range> parts) override;
  void all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte* mine) override;
  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override;
  void broadcast(std::byte* buffer, size_t bytes, int root) override;
  void barrier() override { host_.barrier(); }
  std::unique_ptr<Comm> split(int color, int key) override { return std::make_unique<StagedComm>(host_.split(color, key), backend_); }
  Buffer shared_window(size_t bytes) override { return host_.shared_window(bytes); }
  void set_deadline(double seconds) override { host_.set_deadline(seconds); }
  double deadline() const override { return host_.deadline(); }
  void abort(int code) override { host_.abort(code); }
  void interrupt() override { host_.interrupt(); }

 private:
  std::byte* stage(size_t bytes);
  void begin_return();
  void end_return();

  std::unique_ptr<Comm> owned_;
  Comm& host_;
  Backend& backend_;
  std::array<Buffer, 4> stages_;  // used in turn: copies out of the others may still be under way
  size_t used_ = 0;               // since all copies were through
};

}  // namespace tessera
