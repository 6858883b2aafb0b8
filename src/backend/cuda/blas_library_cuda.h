// cuBLASLt, opened when the first product needs it: a program without products, or without a GPU, starts without it.
#pragma once
#include <cublasLt.h>

#include <string>

namespace tessera::CUDA_SIDE {

struct BlasLibrary {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetStatusString) status_text;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
  decltype(&cublasLtMatmulDescCreate) create_operation;
  decltype(&cublasLtMatmulDescDestroy) destroy_operation;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
};

// Stays open until the process ends. Any thread may ask. Throws Error that names the places that were looked at.
const BlasLibrary& blas_library();

// Version and place, or why it cannot be used; for `tessera env`.
std::string blas_library_fact();

}  // namespace tessera::CUDA_SIDE
