// ProfilingComm: a group that passes every call on and records in a Profile what was exchanged, and how long it took with the waiting for
// the others. Groups split from it record, too.
#pragma once
#include "backend/profile.h"
#include "comm/comm.h"

namespace tessera {

class ProfilingComm final : public Comm {
 public:
  ProfilingComm(Comm& comm, Profile& profile) : comm_(comm), profile_(profile) {}  // both outlive this
  ProfilingComm(std::unique_ptr<Comm> owned, Profile& profile) : owned_(std::move(owned)), comm_(*owned_), profile_(profile) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  int node() const override { return comm_.node(); }
  int nodes() const override { return comm_.nodes(); }
  std::string describe() const override { return comm_.describe(); }

  void all_gather(std::byte* buffer, std::span<const Range> parts) override;
  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override;
  void broadcast(std::byte* buffer, size_t bytes, int root) override;
  void barrier() override;
  std::unique_ptr<Comm> split(int color, int key) override;
  Buffer shared_window(size_t bytes) override { return comm_.shared_window(bytes); }
  void set_deadline(double seconds) override { comm_.set_deadline(seconds); }
  double deadline() const override { return comm_.deadline(); }
  void abort(int code) override { comm_.abort(code); }
  void interrupt() override { comm_.interrupt(); }

 private:
  template <class Call>
  void timed(const char* name, Dtype, size_t count, double bytes, Call&&);

  std::unique_ptr<Comm> owned_;
  Comm& comm_;
  Profile& profile_;
};

}  // namespace tessera
