#include "backend/cuda/blas_library_cuda.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "core/error.h"
#include "core/text.h"

namespace tessera::CUDA_SIDE {
namespace {

// The functions used here are the same in both versions.
constexpr const char* names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

std::vector<std::string> places() {
  std::vector<std::string> folders{""};  // where the system's loader looks
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* const home = std::getenv(variable); home && *home) folders.push_back(str(home, "/lib64/"));
  folders.emplace_back("/usr/local/cuda/lib64/");
  std::vector<std::string> out;
  for (const char* name : names)
    for (const std::string& folder : folders) out.push_back(folder + name);
  return out;
}

void* open_first() {
  for (const std::string& place : places())
    if (void* const handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
  fail("cuBLASLt, the library of matrix products on a GPU", "it could not be opened", str("one of ", join(places(), ", ")),
       "install the CUDA 13 toolkit, or set CUDA_HOME or LD_LIBRARY_PATH to where it is; --device cpu does without");
}

template <class F>
void find(void* handle, F& function, const char* name) {
  function = reinterpret_cast<F>(dlsym(handle, name));
  if (!function)
    fail("cuBLASLt, the library of matrix products on a GPU", str("it has no ", name), "CUDA 12 or 13",
         "install the CUDA 13 toolkit and set CUDA_HOME to it");
}

BlasLibrary open_library() {
  void* const h = open_first();
  BlasLibrary l{};
  find(h, l.create, "cublasLtCreate");
  find(h, l.destroy, "cublasLtDestroy");
  find(h, l.status_text, "cublasLtGetStatusString");
  find(h, l.version, "cublasLtGetVersion");
  find(h, l.matmul, "cublasLtMatmul");
  find(h, l.choose, "cublasLtMatmulAlgoGetHeuristic");
  find(h, l.create_operation, "cublasLtMatmulDescCreate");
  find(h, l.destroy_operation, "cublasLtMatmulDescDestroy");
  find(h, l.set_operation, "cublasLtMatmulDescSetAttribute");
  find(h, l.create_layout, "cublasLtMatrixLayoutCreate");
  find(h, l.destroy_layout, "cublasLtMatrixLayoutDestroy");
  find(h, l.create_preference, "cublasLtMatmulPreferenceCreate");
  find(h, l.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  find(h, l.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  return l;
}

}  // namespace

const BlasLibrary& blas_library() {
  static const BlasLibrary library = open_library();  // tried again after a failure
  return library;
}

std::string blas_library_fact() {
  try {
    const size_t v = blas_library().version();
    return str(v / 10000, ".", v / 100 % 100, ".", v % 100);
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace tessera::CUDA_SIDE
