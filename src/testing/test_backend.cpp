#include "testing/test_backend.h"

#include "backend/cuda/make.h"

namespace tessera {

std::unique_ptr<Backend> make_test_backend(std::string_view device, int threads, uint64_t seed) {
  if (device == "cuda_host") return cuda_host::make_cuda_backend(0, threads, seed);
  return make_backend(device, threads);
}

std::vector<const char*> test_devices() {
  std::vector<const char*> all{"cpu", "cuda_host"};
  if (cuda_devices() > 0) all.push_back("cuda");
  return all;
}

}  // namespace tessera
