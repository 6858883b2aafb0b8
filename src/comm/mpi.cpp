// Ranks as MPI processes. Every wait polls and rests, so that a rank that waits leaves its core to those that work.
#include <fcntl.h>
#include <mpi.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>

#include "comm/comm.h"
#include "comm/pages.h"
#include "comm/sum.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr size_t scratch_floats = size_t(1) << 20;  // of a reduction, over all ranks
constexpr size_t gather_piece = size_t(2) << 20;    // bytes of a part that one round moves

void check(int code) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error("MPI: " + std::string(text, size_t(length)));
}

// Yields at first, which answers quick partners quickly; then sleeps, longer and longer. Large messages advance at every look, so the
// sleeps stay short until it is clear that somebody computes.
void rest(int tries) {
  if (tries < 32) return std::this_thread::yield();
  const int microseconds = tries < 1000 ? std::min(tries - 31, 100) : 500;
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

void wait(std::span<MPI_Request> requests, const std::atomic<bool>& interrupted) {
  for (int tries = 0;; ++tries) {
    int done = 0;
    check(MPI_Testall(int(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE));
    if (done) return;
    if (interrupted) throw Error("MPI: the wait was interrupted");
    rest(tries);
  }
}

// Piece `step` of a part that is cut into pieces of one length, the last one shorter; empty past the end.
Range cut(Range part, size_t step, size_t piece) {
  const size_t begin = std::min(part.begin + step * piece, part.end);
  return {begin, std::min(begin + piece, part.end)};
}

// MPI from the first use to the end of the process. A run that ends in an error ends by MPI_Abort and does not come here.
class Runtime {
 public:
  static void start() { static const Runtime runtime; }

 private:
  Runtime() {
    int given = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &given));
    if (given < MPI_THREAD_MULTIPLE)
      fail("MPI", "this library has no MPI_THREAD_MULTIPLE", "MPICH with threads", "apt-get install libmpich-dev mpich");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    same_launcher();
  }
  ~Runtime() {
    const std::atomic<bool> never = false;
    MPI_Request request;
    try {
      check(MPI_Ibarrier(MPI_COMM_WORLD, &request));
      wait({&request, 1}, never);
      MPI_Finalize();
    } catch (const Error& e) {
      std::fprintf(stderr, "%s\n", e.what());
      MPI_Abort(MPI_COMM_WORLD, 1);
    }
  }

  // The mpiexec of another MPI starts processes that do not find each other: each would be a run of its own.
  static void same_launcher() {
    int size = 0;
    check(MPI_Comm_size(MPI_COMM_WORLD, &size));
    for (const char* name : {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE"}) {
      const char* asked = std::getenv(name);
      if (asked && size == 1 && std::atoi(asked) > 1)
        fail("mpiexec", str("it started ", asked, " processes, but MPI sees one"), "the mpiexec of MPICH", "start with mpiexec.mpich");
    }
  }
};

class MpiComm final : public Comm {
 public:
  explicit MpiComm(MPI_Comm comm) : comm_(comm) {  // owns comm
    check(MPI_Comm_rank(comm_, &rank_));
    check(MPI_Comm_size(comm_, &size_));
    find_nodes();
  }
  ~MpiComm() override {
    if (!interrupted_ && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int node() const override { return node_; }
  int nodes() const override { return nodes_; }
  std::string describe() const override;

  void all_gather(std::byte* buffer, std::span<const Range> parts) override;
  void reduce_scatter(float* sum, const float* x, std::span<const Range> parts) override;
  void broadcast(std::byte* buffer, size_t bytes, int root) override;
  void barrier() override;
  std::unique_ptr<Comm> split(int color, int key) override;
  Buffer shared_window(size_t bytes) override;
  void abort(int code) override;
  void interrupt() override { interrupted_ = true; }

 private:
  using Requests = std::vector<MPI_Request>;
  void find_nodes();
  void wait(std::span<MPI_Request> requests) { tessera::wait(requests, interrupted_); }
  Requests exchange_pieces(float* received, const float* x, std::span<const Range> parts, size_t step, size_t piece);

  MPI_Comm comm_;
  int rank_ = 0, size_ = 1, node_ = 0, nodes_ = 1;
  std::atomic<bool> interrupted_ = false;
  std::vector<float> scratch_;
};

// A node is known by its first rank; nodes are counted in the order of those.
void MpiComm::find_nodes() {
  MPI_Comm here;
  check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &here));
  int first = rank_;
  check(MPI_Bcast(&first, 1, MPI_INT, 0, here));
  check(MPI_Comm_free(&here));
  std::vector<int> firsts(size_);
  check(MPI_Allgather(&first, 1, MPI_INT, firsts.data(), 1, MPI_INT, comm_));
  std::sort(firsts.begin(), firsts.end());
  firsts.erase(std::unique(firsts.begin(), firsts.end()), firsts.end());
  nodes_ = int(firsts.size());
  node_ = int(std::find(firsts.begin(), firsts.end(), first) - firsts.begin());
}

std::string MpiComm::describe() const {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  check(MPI_Get_library_version(text, &length));
  const std::string line = tessera::split({text, size_t(length)}, '\n')[0];  // "MPICH Version:      4.0.2"
  const size_t colon = line.find(':');
  const std::string name = colon == line.npos ? line : str("MPICH ", trim(line.substr(colon + 1)));
  return str("mpi (", name, "), ", size_, size_ == 1 ? " rank on " : " ranks on ", nodes_, nodes_ == 1 ? " node" : " nodes");
}

// In rounds, two in flight: for one large message the library would copy all of it into buffers of its own.
void MpiComm::all_gather(std::byte* buffer, std::span<const Range> parts) {
  assert(int(parts.size()) == size_);
  size_t longest = 0;
  for (const Range& part : parts) longest = std::max(longest, part.size());
  const size_t steps = (longest + gather_piece - 1) / gather_piece;
  struct Round {
    std::vector<MPI_Count> counts;
    std::vector<MPI_Aint> begins;
    MPI_Request request = MPI_REQUEST_NULL;
  } rounds[2];
  for (size_t step = 0; step < steps; ++step) {
    Round& round = rounds[step % 2];
    wait({&round.request, 1});
    round.counts.clear(), round.begins.clear();
    for (const Range& part : parts) {
      const Range piece = cut(part, step, gather_piece);
      round.counts.push_back(MPI_Count(piece.size()));
      round.begins.push_back(MPI_Aint(piece.begin));
    }
    check(MPI_Iallgatherv_c(MPI_IN_PLACE, 0, MPI_BYTE, buffer, round.counts.data(), round.begins.data(), MPI_BYTE, comm_, &round.request));
  }
  for (Round& round : rounds) wait({&round.request, 1});
}

// Piece `step` of every part goes to its owner; this rank's own pieces arrive at received[r * piece] from rank r.
MpiComm::Requests MpiComm::exchange_pieces(float* received, const float* x, std::span<const Range> parts, size_t step, size_t piece) {
  Requests requests;
  const Range mine = cut(parts[rank_], step, piece);
  for (int d = 1; d < size_ && mine.size(); ++d) {
    const int from = (rank_ + size_ - d) % size_;
    check(MPI_Irecv(received + from * piece, int(mine.size()), MPI_FLOAT, from, 0, comm_, &requests.emplace_back()));
  }
  for (int d = 1; d < size_; ++d) {
    const int to = (rank_ + d) % size_;
    const Range theirs = cut(parts[to], step, piece);
    if (theirs.size()) check(MPI_Isend(x + theirs.begin, int(theirs.size()), MPI_FLOAT, to, 0, comm_, &requests.emplace_back()));
  }
  return requests;
}

// In pieces, two in flight: one is summed while the next one travels.
void MpiComm::reduce_scatter(float* sum, const float* x, std::span<const Range> parts) {
  assert(int(parts.size()) == size_);
  size_t longest = 0;
  for (const Range& part : parts) longest = std::max(longest, part.size());
  if (longest == 0) return;
  const size_t piece = std::min(longest, scratch_floats / 2 / size_t(size_));
  const size_t steps = (longest + piece - 1) / piece, half = piece * size_t(size_);
  scratch_.resize(std::max(scratch_.size(), 2 * half));
  Requests coming = exchange_pieces(scratch_.data(), x, parts, 0, piece);
  for (size_t step = 0; step < steps; ++step) {
    wait(coming);
    const float* received = scratch_.data() + step % 2 * half;
    if (step + 1 < steps) coming = exchange_pieces(scratch_.data() + (step + 1) % 2 * half, x, parts, step + 1, piece);
    const size_t begin = std::min(step * piece, parts[rank_].size()), n = std::min(piece, parts[rank_].size() - begin);
    for (int r = 0; r < size_; ++r) add_into(sum + begin, r == rank_ ? x + parts[rank_].begin + begin : received + r * piece, n);
  }
}

void MpiComm::broadcast(std::byte* buffer, size_t bytes, int root) {
  MPI_Request request;
  check(MPI_Ibcast_c(buffer, MPI_Count(bytes), MPI_BYTE, root, comm_, &request));
  wait({&request, 1});
}

void MpiComm::barrier() {
  MPI_Request request;
  check(MPI_Ibarrier(comm_, &request));
  wait({&request, 1});
}

std::unique_ptr<Comm> MpiComm::split(int color, int key) {
  MPI_Comm group;
  barrier();  // restful; the call below spins until all have come
  check(MPI_Comm_split(comm_, color, key, &group));
  return std::make_unique<MpiComm>(group);
}

// mpiexec forwards a process's output in its own time; without the pause the abort can overtake the message that explains it.
void MpiComm::abort(int code) {
  std::fflush(nullptr);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

// A file in memory, made by rank 0 and opened by the others through /proc. MPI_Win_allocate_shared would need room in /dev/shm, which
// containers keep at 64 MB, and frees collectively, which hangs when one rank ends in an error.
Buffer MpiComm::shared_window(size_t bytes) {
  assert(nodes_ == 1);
  int64_t made[2] = {-1, -1};  // process and file of rank 0
  if (rank_ == 0) {
    made[1] = memory_file(bytes);
    made[0] = getpid();
  }
  broadcast(reinterpret_cast<std::byte*>(made), sizeof made, 0);
  const std::string path = str("/proc/", made[0], "/fd/", made[1]);
  const int file = rank_ == 0 ? int(made[1]) : open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (made[0] < 0 || file < 0)
    fail("shared window", str(path, " could not be opened: ", std::strerror(errno)), "ranks of one user on one system",
         "start all ranks of a node in one container");
  Buffer pages = file_pages(file, bytes);
  barrier();  // rank 0 keeps its file open until all have it
  close_file(file);
  return pages;
}

}  // namespace

std::unique_ptr<Comm> make_mpi_comm() {
  if (!started_by_mpi()) return make_single_comm();
  Runtime::start();
  MPI_Comm mine;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &mine));
  return std::make_unique<MpiComm>(mine);
}

}  // namespace tessera
