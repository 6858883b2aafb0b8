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
#include <numeric>
#include <thread>

#include "comm/blocking_call.h"
#include "comm/comm.h"
#include "comm/lost_ranks.h"
#include "comm/mpi_roll_call.h"
#include "comm/pages.h"
#include "comm/sum.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr size_t scratch_floats = size_t(1) << 20;  // of a reduction, over all ranks
constexpr size_t gather_piece = size_t(2) << 20;    // bytes of a part that one round moves
constexpr double roll_seconds = 1.5;                // that a rank listens for the answers of the others

void check(int code) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw RankLost("MPI: " + std::string(text, size_t(length)));
}

// Yields at first, which answers quick partners quickly; then sleeps, longer and longer. Large messages advance at every look, so the
// sleeps stay short until it is clear that somebody computes.
void rest(int tries) {
  if (tries < 32) return std::this_thread::yield();
  const int microseconds = tries < 1000 ? std::min(tries - 31, 100) : 500;
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// look(): called now and then while the wait is long; ends it by throwing.
template <class Look>
void wait(std::span<MPI_Request> requests, Look look) {
  for (int tries = 0;; ++tries) {
    int done = 0;
    check(MPI_Testall(int(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE));
    if (done) return;
    if (tries % 64 == 63) look();
    rest(tries);
  }
}

// What each rank of the run on this node is doing, in memory that they share. A process that is stopped cannot answer; this can.
struct Place {
  std::atomic<int64_t> process;
  std::atomic<Activity> doing;
};

// Piece `step` of a part that is cut into pieces of one length, the last one shorter; empty past the end.
Range cut(Range part, size_t step, size_t piece) {
  const size_t begin = std::min(part.begin + step * piece, part.end);
  return {begin, std::min(begin + piece, part.end)};
}

// MPI from the first use to the end of the process. A run that ends in an error ends by MPI_Abort and does not come here.
class Runtime {
 public:
  static Runtime& start() {
    static Runtime runtime;
    return runtime;
  }
  std::atomic<double> deadline = default_deadline;  // for the end of the run
  Buffer places;                                    // a Place per rank of the run; those of other nodes stay zero
  std::span<Place> all_places() { return {reinterpret_cast<Place*>(places.data()), places.bytes() / sizeof(Place)}; }

 private:
  Runtime() {
    const char* rank_here = std::getenv("MPI_LOCALRANKID");
    if (!rank_here || std::atoi(rank_here) == 0) remove_stale_files("/dev/shm");
    one_machine_uses_shared_memory();
    const BlockingCall call("MPI_Init", default_deadline);
    int given = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &given));
    if (given < MPI_THREAD_MULTIPLE)
      fail("MPI", "this library has no MPI_THREAD_MULTIPLE", "MPICH with threads", "apt-get install libmpich-dev mpich");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    same_launcher();
  }
  ~Runtime() {
    Doing::show(nullptr);
    MPI_Request request;
    try {
      const BlockingCall call("the end of the run", deadline);
      check(MPI_Ibarrier(MPI_COMM_WORLD, &request));
      wait({&request, 1}, [] {});
      MPI_Finalize();
    } catch (const Error& e) {
      std::fprintf(stderr, "%s\n", e.what());
      MPI_Abort(MPI_COMM_WORLD, exit_rank_lost);
    }
  }

  // With TCP beside shared memory MPICH 4.0 may wait for ever in MPI_Finalize (its pull request 6596). Hydra tells how many ranks are here.
  static void one_machine_uses_shared_memory() {
    const char* here = std::getenv("MPI_LOCALNRANKS");
    const char* all = std::getenv("PMI_SIZE");
    if (here && all && std::string_view(here) == all) setenv("UCX_TLS", "sm,self", 0);
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
  MpiComm(MPI_Comm comm, double deadline) : comm_(comm), deadline_(deadline) {  // owns comm
    check(MPI_Comm_rank(comm_, &rank_));
    check(MPI_Comm_size(comm_, &size_));
    find_members();
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
  void set_deadline(double seconds) override { Runtime::start().deadline = deadline_ = seconds; }
  double deadline() const override { return deadline_; }

 private:
  using Requests = std::vector<MPI_Request>;
  void find_nodes();
  void find_members();
  void begin(Call call) { call_ = call, ++calls_; }
  void wait(std::span<MPI_Request> requests) {
    wait_began_ = Clock::now();
    tessera::wait(requests, [this] { look(); });
  }
  void look();
  [[noreturn]] void lose();
  Requests exchange_pieces(float* received, const float* x, std::span<const Range> parts, size_t step, size_t piece);

  MPI_Comm comm_;
  int rank_ = 0, size_ = 1, node_ = 0, nodes_ = 1;
  std::vector<int> members_;  // ranks of the run
  double deadline_;           // seconds
  Call call_ = Call::start;   // the one that is under way, the calls_-th
  int64_t calls_ = 0;
  Clock::time_point wait_began_;
  std::atomic<bool> interrupted_ = false;
  std::vector<float> scratch_;
};

void MpiComm::find_members() {
  MPI_Group mine, run;
  check(MPI_Comm_group(comm_, &mine));
  check(MPI_Comm_group(MPI_COMM_WORLD, &run));
  std::vector<int> ranks(size_);
  std::iota(ranks.begin(), ranks.end(), 0);
  members_.resize(size_);
  check(MPI_Group_translate_ranks(mine, size_, ranks.data(), run, members_.data()));
  check(MPI_Group_free(&mine));
  check(MPI_Group_free(&run));
}

// A node is known by its first rank; nodes are counted in the order of those.
void MpiComm::find_nodes() {
  begin(Call::start);
  MPI_Request request;
  check(MPI_Ibarrier(comm_, &request));
  wait({&request, 1});  // restful; the call below spins until all have come
  MPI_Comm here;
  int first = rank_;
  {
    const BlockingCall call("MPI_Comm_split_type", deadline_);
    check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &here));
    check(MPI_Bcast(&first, 1, MPI_INT, 0, here));
    check(MPI_Comm_free(&here));
  }
  std::vector<int> firsts(size_);
  check(MPI_Iallgather(&first, 1, MPI_INT, firsts.data(), 1, MPI_INT, comm_, &request));
  wait({&request, 1});
  std::sort(firsts.begin(), firsts.end());
  firsts.erase(std::unique(firsts.begin(), firsts.end()), firsts.end());
  nodes_ = int(firsts.size());
  node_ = int(std::find(firsts.begin(), firsts.end(), first) - firsts.begin());
}

void MpiComm::look() {
  if (interrupted_) throw Error("MPI: the wait was interrupted");
  if (seconds_since(wait_began_) > deadline_ || roll_called(comm_)) lose();
}

// Every rank that waits in this group answers the roll; those that do not are missing. Whatever other threads of this process wait for, it
// ends soon after.
void MpiComm::lose() {
  const std::span<Place> places = Runtime::start().all_places();
  const auto doing_of = [&](int rank) { return places.empty() ? Doing::now() : places[size_t(rank)].doing.load(); };
  const auto answers = call_roll(comm_, {doing_of(members_[rank_]), call_, calls_}, roll_seconds);
  std::vector<RankState> states;
  for (int r = 0; r < size_; ++r) {
    RankState s{members_[r], answers[r].has_value(), true, Activity::starting, ""};
    const int64_t process = places.empty() ? 0 : places[size_t(members_[r])].process.load();
    if (s.here)
      s.doing = answers[r]->doing;
    else if (s.seen = process > 0; s.seen)
      s.doing = doing_of(members_[r]), s.more = process_text(process);
    states.push_back(s);
  }
  const std::string text = lost_ranks_text(str(name_of(call_), ' ', calls_), deadline_, states);
  end_later(text, 20);
  throw RankLost(text);
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
  begin(Call::all_gather);
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
  begin(Call::reduce_scatter);
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
  begin(Call::broadcast);
  MPI_Request request;
  check(MPI_Ibcast_c(buffer, MPI_Count(bytes), MPI_BYTE, root, comm_, &request));
  wait({&request, 1});
}

void MpiComm::barrier() {
  begin(Call::barrier);
  MPI_Request request;
  check(MPI_Ibarrier(comm_, &request));
  wait({&request, 1});
}

std::unique_ptr<Comm> MpiComm::split(int color, int key) {
  MPI_Comm group;
  barrier();  // restful; the call below spins until all have come
  {
    const BlockingCall call("MPI_Comm_split", deadline_);
    check(MPI_Comm_split(comm_, color, key, &group));
  }
  return std::make_unique<MpiComm>(group, deadline_);
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

// For the ranks of this node to see. Collective.
void show_this_process(Runtime& runtime, MpiComm& run) {
  runtime.places = run.split(run.node(), run.rank())->shared_window(size_t(run.size()) * sizeof(Place));
  Place& mine = runtime.all_places()[size_t(run.rank())];
  mine.process = getpid();
  Doing::show(&mine.doing);
}

}  // namespace

std::unique_ptr<Comm> make_mpi_comm() {
  if (!started_by_mpi()) return make_single_comm();
  Runtime& runtime = Runtime::start();
  MPI_Comm mine;
  MPI_Request request;
  check(MPI_Comm_idup(MPI_COMM_WORLD, &mine, &request));
  {
    const BlockingCall call("MPI_Comm_idup", default_deadline);
    wait({&request, 1}, [] {});
  }
  auto comm = std::make_unique<MpiComm>(mine, default_deadline);
  if (!runtime.places) show_this_process(runtime, *comm);
  return comm;
}

}  // namespace tessera
