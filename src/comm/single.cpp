// A group of one rank: every exchange is with itself.
#include <cassert>
#include <cstdlib>

#include "comm/comm.h"
#include "comm/pages.h"
#include "comm/sum.h"
#include "core/error.h"

namespace tessera {
namespace {

class SingleComm final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int node() const override { return 0; }
  int nodes() const override { return 1; }
  std::string describe() const override { return "single, 1 rank"; }

  void all_gather(std::byte*, std::span<const Range> parts) override { assert(parts.size() == 1), (void)parts; }
  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override {
    assert(parts.size() == 1);
    add_into(sum, x + parts[0].begin, parts[0].size());
  }
  void broadcast(std::byte*, size_t, int root) override { assert(root == 0), (void)root; }
  void barrier() override {}
  std::unique_ptr<Comm> split(int, int) override { return make_single_comm(); }
  Buffer shared_window(size_t bytes) override { return private_pages(bytes); }
  void abort(int code) override { std::exit(code); }
  void interrupt() override {}  // nothing ever waits
};

}  // namespace

std::unique_ptr<Comm> make_single_comm() { return std::make_unique<SingleComm>(); }

}  // namespace tessera
