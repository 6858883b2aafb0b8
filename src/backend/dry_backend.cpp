#include "backend/dry_backend.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

#include "backend/device_scratch.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {

namespace {

void* addresses(size_t bytes, const char* what) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    fail(str("planning the memory for ", what), str(human_bytes(bytes), " of address space could not be had: ", std::strerror(errno)),
         "a process without a limit on its address space", "ulimit -v unlimited");
  return data;
}

// What stands for memory of a GPU, of all dry runs of this process.
std::mutex on_gpus_guard;
std::map<const std::byte*, size_t> on_gpus;

}  // namespace

Buffer DryBackend::reserve(size_t bytes, const char* what) {
  if (!gpu_) return reserve_pinned(bytes, what);
  const size_t size = std::max<size_t>(bytes, 1);
  void* const data = addresses(size, what);
  const std::lock_guard lock(on_gpus_guard);
  on_gpus[static_cast<const std::byte*>(data)] = size;
  return Buffer(data, size, [](void* at, size_t n) {
    const std::lock_guard guard(on_gpus_guard);
    on_gpus.erase(static_cast<const std::byte*>(at));
    munmap(at, n);
  });
}

Buffer DryBackend::reserve_pinned(size_t bytes, const char* what) {
  const size_t size = std::max<size_t>(bytes, 1);
  return Buffer(addresses(size, what), size, [](void* at, size_t n) { munmap(at, n); });
}

bool DryBackend::on_device(const void* p) const {
  if (!gpu_) return false;
  const auto* const at = static_cast<const std::byte*>(p);
  const std::lock_guard lock(on_gpus_guard);
  auto next = on_gpus.upper_bound(at);
  return next != on_gpus.begin() && (--next, at < next->first + next->second);
}

// As CudaBackend::scratch: one piece, as large as the largest need.
void DryBackend::need_scratch(size_t bytes) {
  if (!gpu_ || bytes <= scratch_) return;
  scratch_charge_ = Charge();
  scratch_charge_ = Charge(ledger(), "scratch of products", scratch_ = bytes);
}

void DryBackend::gemm(const Product& p) { need_scratch(product_scratch(p)); }

// Where CudaBackend has no kernel, it forms the products as Backend does.
bool DryBackend::drops_inside(std::span<const AdapterProduct> all) const { return gpu_ && joins_adapters(all); }
void DryBackend::adapters(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  if (!joins_adapters(all)) return Backend::adapters(all, x, room);
  need_scratch(adapter_scratch(all));
}
void DryBackend::adapters_backward(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  if (!joins_adapters(all)) return Backend::adapters_backward(all, x, room);
  need_scratch(adapter_backward_scratch(all));
}
void DryBackend::adapters_input_gradient(Tensor dx, std::span<const AdapterProduct> all, Tensor room) {
  if (!joins_adapters(all)) Backend::adapters_input_gradient(dx, all, room);
}

void DryBackend::column_sum(Tensor, Tensor x) { need_scratch(column_scratch(x.rows(), x.cols())); }
void DryBackend::embedding_backward(Tensor, Tensor, Tensor ids) { need_scratch(embedding_scratch(ids.size())); }
void DryBackend::rmsnorm_backward(Tensor, Tensor dw, Tensor, Tensor x, Tensor, Tensor, bool) {
  if (!dw.empty()) need_scratch(column_scratch(x.rows(), x.cols()));
}
void DryBackend::attention_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor q, Tensor, Tensor, Tensor, AttentionShape) {
  need_scratch(attention_scratch(q.shape.dim[0], q.shape.dim[1], q.shape.dim[2]));
}

size_t DryBackend::total_memory() const {
  rlimit space{};
  const bool limited = getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY;
  return limited ? size_t(space.rlim_cur) / 4 : size_t(16) << 40;
}

}  // namespace tessera
