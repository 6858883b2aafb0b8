#include "comm/dry_comm.h"

#include <algorithm>

#include "comm/device_comm.h"
#include "comm/pages.h"
#include "core/error.h"

namespace tessera {

void DryComm::all_gather(std::byte*, std::span<const Range> parts) {
  for (size_t r = 0; r < parts.size(); ++r)
    if (int(r) != rank_) traffic_.gathered += int64_t(parts[r].size());
}

void DryComm::all_gather_from(std::byte* buffer, std::span<const Range> parts, const std::byte*) { all_gather(buffer, parts); }

void DryComm::reduce_scatter(float*, const float*, std::span<const Range> parts) {
  traffic_.reduced += int64_t(size_ - 1) * int64_t(parts[size_t(rank_)].size() * sizeof(float));
  size_t longest = 0;
  for (const Range& p : parts) longest = std::max(longest, p.size());
  const size_t needed = gpu_ ? device_exchange_bytes(size_, longest) : 0;
  if (needed <= exchange_) return;
  exchange_charge_ = Charge();
  exchange_charge_ = Charge(*gpu_, "exchange of gradients", exchange_ = needed);
}

std::unique_ptr<Comm> DryComm::split(int, int) { return std::make_unique<DryComm>(rank_, size_, nodes_, traffic_, gpu_); }
Buffer DryComm::shared_window(size_t bytes) { return private_pages(bytes); }
void DryComm::abort(int) { throw Error("the plan was ended"); }

}  // namespace tessera
