// Comm: a group of ranks that exchange bytes. Three kinds: single (one rank), local (ranks are threads of one process; for tests), mpi
// (ranks are processes); for memory of a device see comm/device_comm.h. Every rank of the group calls the same collectives in the same
// order.
// Gathers move bytes and are exact. Sums are exchanges followed by our own sum in rank order, so they are the same bits on any number of
// ranks that present the same addends in the same order.
// No wait is for ever: past the deadline of the group it throws RankLost.
// Threads: one thread at a time per Comm object; a second thread takes its own from split().
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "core/range.h"

namespace tessera {

// A rank did not come to an exchange in time, or the library that moves the bytes has failed: nothing the user has given is wrong, and the
// run can go on from its last checkpoint. The text names the missing ranks and the phase in which each rank is.
struct RankLost : Error {
  using Error::Error;
};
constexpr int exit_rank_lost = 70;         // the exit code of a program that ends by it
constexpr double default_deadline = 1800;  // seconds

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int node() const = 0;              // index of this rank's node, from 0
  virtual int nodes() const = 0;             // number of nodes of the group
  virtual std::string describe() const = 0;  // "mpi (MPICH 4.0.2), 4 ranks on 1 node"

  // buffer holds size() parts, parts[r] (bytes, ascending, disjoint) is filled in on rank r; afterwards all parts are filled in everywhere.
  virtual void all_gather(std::byte* buffer, std::span<const Range> parts) = 0;
  // The same, when this rank's part lies at `mine`: it is copied into its place first.
  virtual void all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte* mine);
  // x: the whole array on every rank; sum: this rank's part (parts[rank()], in elements). sum[i] = ((sum[i] + x_0[i]) + x_1[i]) + ...
  virtual void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) = 0;
  virtual void broadcast(std::byte* buffer, size_t bytes, int root) = 0;
  virtual void barrier() = 0;
  // A new group of the ranks that give the same color, ordered by key, then rank. Collective.
  virtual std::unique_ptr<Comm> split(int color, int key) = 0;
  // Zeroed, page-aligned memory shared by the ranks of this group on this node; bytes must be equal on all of them. Collective.
  // REQUIRES: all ranks of the group are on one node.
  virtual Buffer shared_window(size_t bytes) = 0;
  // How long a rank of this group, and of groups split from it later, waits for the others: 1,800 s when nothing is said.
  virtual void set_deadline(double /*seconds*/) {}
  virtual double deadline() const { return default_deadline; }  // seconds
  // Ends every rank of the run with this exit code. Does not return: single exits, mpi ends all processes, local throws Error on every
  // rank.
  virtual void abort(int code) = 0;
  // From any thread: what waits in this group on this rank, now or later, throws Error. For ending a second thread when the first failed;
  // the group (not the run) is lost.
  virtual void interrupt() = 0;
};

// Sums and gathers of small values, in rank order; free functions over all_gather.
std::vector<int64_t> gather_values(Comm&, int64_t mine);
std::vector<double> gather_values(Comm&, double mine);
int64_t sum_of(Comm&, int64_t mine);
// Every rank's string, in rank order.
std::vector<std::string> gather_strings(Comm&, const std::string& mine);

std::unique_ptr<Comm> make_single_comm();
// MPI_COMM_WORLD; initialises MPI (thread multiple) on first use and finalises it at exit. Without mpiexec: a single comm.
std::unique_ptr<Comm> make_mpi_comm();
bool started_by_mpi();  // environment of mpiexec (PMI_RANK, PMI_SIZE) is present

// Files that processes killed while MPI started have left in `folder` (/dev/shm): of this user, with the names MPICH and UCX give, older
// than ten seconds, neither open nor mapped in any process. They are removed; returns how many. make_mpi_comm() does it once on each node.
int remove_stale_files(const std::string& folder);

// Runs f(comm) on n threads, each as one rank of a local group. The first exception is rethrown after all threads have ended.
void run_local_ranks(int n, const std::function<void(Comm&)>& f);

}  // namespace tessera
