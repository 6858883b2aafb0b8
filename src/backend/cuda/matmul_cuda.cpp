// Products by cuBLASLt. For each shape its heuristics are asked once; the same shape then always takes the same algorithm, so that the same
// numbers give the same bits wherever they stand in memory.
#include <map>
#include <utility>

#include "backend/cuda/blas_library_cuda.h"
#include "backend/cuda/matmul.h"
#include "backend/device_scratch.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera::CUDA_SIDE {
namespace {

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(str("cuBLASLt, ", what), blas_library().status_text(status), "calls that succeed",
       "see whether the device is healthy (nvidia-smi) and the library fits the driver (`tessera env`)");
}

cudaDataType_t type_of(Dtype dtype) { return dtype == Dtype::bf16 ? CUDA_R_16BF : dtype == Dtype::f16 ? CUDA_R_16F : CUDA_R_32F; }

// What the library destroys by a function of its own.
template <class T>
class Owned {
 public:
  using Destroy = cublasStatus_t (*)(T);
  explicit Owned(Destroy destroy) : destroy_(destroy) {}
  Owned(Owned&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)), destroy_(o.destroy_) {}
  Owned& operator=(Owned&&) = delete;
  ~Owned() {
    if (handle_) destroy_(handle_);
  }
  T get() const { return handle_; }
  T* place() { return &handle_; }

 private:
  T handle_ = nullptr;
  Destroy destroy_;
};

using Layout = Owned<cublasLtMatrixLayout_t>;
Layout make_layout(Dtype dtype, const ColumnMajor::Matrix& m) {
  Layout layout(blas_library().destroy_layout);
  check(blas_library().create_layout(layout.place(), type_of(dtype), uint64_t(m.rows), uint64_t(m.cols), m.rows), "describing a matrix");
  return layout;
}

using Operation = Owned<cublasLtMatmulDesc_t>;
template <class V>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t what, V value) {
  check(blas_library().set_operation(operation.get(), what, &value, sizeof value), "describing a product");
}

// f32 is f32: no TF32.
Operation make_operation(const ColumnMajor& layout, bool bias) {
  Operation operation(blas_library().destroy_operation);
  check(blas_library().create_operation(operation.place(), CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  const auto op = [](bool transpose) -> int32_t { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, op(layout.left.transpose));
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, op(layout.right.transpose));
  // Along the rows of the library's result, which are our columns; of its dtype.
  if (bias) set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(CUBLASLT_EPILOGUE_BIAS));
  return operation;
}

// What an algorithm is chosen by. More than 16 bytes of alignment change nothing, so that places in an arena are alike.
struct Choice {
  MatmulShape shape;
  bool bias = false;
  uint32_t align_left = 16, align_right = 16, align_add = 16, align_result = 16;
  auto operator<=>(const Choice&) const = default;
};

uint32_t alignment_of(const void* p) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  return at % 16 == 0 ? 16 : uint32_t(at & (~at + 1));
}

struct Plan {
  Operation operation;
  Layout left, right, result;
  cublasLtMatmulAlgo_t algorithm{};
  size_t workspace = 0;
};

using Preference = Owned<cublasLtMatmulPreference_t>;
template <class V>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t what, V value) {
  check(blas_library().set_preference(preference.get(), what, &value, sizeof value), "choosing an algorithm");
}

Preference make_preference(const Choice& c) {
  Preference p(blas_library().destroy_preference);
  check(blas_library().create_preference(p.place()), "choosing an algorithm");
  set(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(matmul_workspace));
  // Parts of a sum are kept in f32, never in c's dtype.
  set(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, c.align_left);
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, c.align_right);
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c.align_add);
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c.align_result);
  return p;
}

// `bias`: any such pointer; some versions look whether there is one.
Plan make_plan(cublasLtHandle_t handle, const Choice& c, const void* bias) {
  const ColumnMajor layout = column_major(c.shape);
  Plan plan{make_operation(layout, c.bias), make_layout(c.shape.in, layout.left), make_layout(c.shape.in, layout.right),
            make_layout(c.shape.out, layout.result)};
  if (c.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  const Preference preference = make_preference(c);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = blas_library().choose(handle, plan.operation.get(), plan.left.get(), plan.right.get(), plan.result.get(),
                                                      plan.result.get(), preference.get(), 1, &best, &found);
  const MatmulShape& s = c.shape;
  if (status != CUBLAS_STATUS_SUCCESS || found == 0 || best.state != CUBLAS_STATUS_SUCCESS)
    fail(str("cuBLASLt, a product (", s.m, ", ", s.k, ") x (", s.k, ", ", s.n, ") of ", name_of(s.in), " into ", name_of(s.out)),
         str("it has no algorithm: ", blas_library().status_text(status)), "products that the library knows",
         "use the library of CUDA 13, or report this shape");
  plan.algorithm = best.algo;
  plan.workspace = best.workspaceSize;
  return plan;
}

}  // namespace

struct Matmuls {
  Matmuls() : handle(blas_library().destroy) { check(blas_library().create(handle.place()), "starting"); }
  Owned<cublasLtHandle_t> handle;
  std::map<Choice, Plan> plans;
};

void CloseMatmuls::operator()(Matmuls* m) const { std::default_delete<Matmuls>()(m); }
OpenMatmuls open_matmuls() { return OpenMatmuls(std::make_unique<Matmuls>().release()); }

void matmul(Device& device, Matmuls& matmuls, const Matmul& w, void* workspace) {
  const void* const add = w.beta != 0 ? w.add : w.c;
  const Choice choice{w.shape, w.bias != nullptr, alignment_of(w.b), alignment_of(w.a), alignment_of(add), alignment_of(w.c)};
  auto at = matmuls.plans.find(choice);
  if (at == matmuls.plans.end()) at = matmuls.plans.emplace(choice, make_plan(matmuls.handle.get(), choice, w.bias)).first;
  const Plan& plan = at->second;
  if (w.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, w.bias);
  check(blas_library().matmul(matmuls.handle.get(), plan.operation.get(), &w.alpha, w.b, plan.left.get(), w.a, plan.right.get(), &w.beta,
                              add, plan.result.get(), w.c, plan.result.get(), &plan.algorithm, workspace, plan.workspace,
                              static_cast<cudaStream_t>(native(device, Lane::compute))),
        "computing a product");
}

}  // namespace tessera::CUDA_SIDE
