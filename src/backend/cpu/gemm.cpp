#include "backend/cpu/cpu.h"

namespace tessera {

void CpuBackend::gemm(const Product& p) { gemm_onednn(p); }

}  // namespace tessera
