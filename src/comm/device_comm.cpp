#include "comm/device_comm.h"

#include "comm/nccl.h"
#include "comm/staged.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {

// Ranks find out together: one without the library would leave the others waiting.
std::unique_ptr<Comm> make_device_comm(Comm& host, Backend& backend) {
  if (host.size() == 1 || backend.host_can_read()) return nullptr;
  if (!backend.native(Lane::exchange)) return std::make_unique<StagedComm>(host, backend);
  std::string why;
  const NcclLibrary* const library = find_nccl(why);
  const std::vector<std::string> all = gather_strings(host, why);
  for (size_t r = 0; r < all.size(); ++r)
    if (!all[r].empty())
      fail(str("device cuda with ", host.size(), " ranks"), str("rank ", r, " finds no NCCL: ", all[r]),
           "one rank, or NCCL (libnccl.so.2) on every machine",
           "install libnccl2 (NVIDIA's package), or name its folder in LD_LIBRARY_PATH; tessera env shows what is found");
  return make_nccl_comm(host, backend, *library);
}

}  // namespace tessera
