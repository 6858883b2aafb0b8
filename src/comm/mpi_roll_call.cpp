#include "comm/mpi_roll_call.h"

#include <chrono>
#include <thread>

namespace tessera {
namespace {
constexpr int roll_tag = 7;  // reductions use 0
}

const char* name_of(Call call) {
  switch (call) {
    case Call::start:
      return "start of a group";
    case Call::all_gather:
      return "all_gather";
    case Call::reduce_scatter:
      return "reduce_scatter";
    case Call::broadcast:
      return "broadcast";
    case Call::barrier:
      return "barrier";
  }
  return "";
}

bool roll_called(MPI_Comm comm) {
  int called = 0;
  return MPI_Iprobe(MPI_ANY_SOURCE, roll_tag, comm, &called, MPI_STATUS_IGNORE) == MPI_SUCCESS && called;
}

// Errors of the library end the listening only: what is known by then is the answer.
std::vector<std::optional<RollAnswer>> call_roll(MPI_Comm comm, const RollAnswer& mine, double seconds) {
  int rank = 0, size = 0;
  MPI_Comm_rank(comm, &rank), MPI_Comm_size(comm, &size);
  // Small enough to be sent at once; a send to a rank that never reads is given up with the group.
  static thread_local RollAnswer sent;
  sent = mine;
  for (int r = 0; r < size; ++r) {
    MPI_Request request;
    if (r != rank && MPI_Isend(&sent, sizeof sent, MPI_BYTE, r, roll_tag, comm, &request) == MPI_SUCCESS) MPI_Request_free(&request);
  }
  std::vector<std::optional<RollAnswer>> answers(size_t(size), std::nullopt);
  answers[size_t(rank)] = mine;
  int missing = size - 1;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (missing > 0 && std::chrono::steady_clock::now() < end) {
    int here = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, roll_tag, comm, &here, &status) != MPI_SUCCESS) break;
    if (!here) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    RollAnswer answer;
    if (MPI_Recv(&answer, sizeof answer, MPI_BYTE, status.MPI_SOURCE, roll_tag, comm, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
    answers[size_t(status.MPI_SOURCE)] = answer;
    --missing;
  }
  return answers;
}

}  // namespace tessera
