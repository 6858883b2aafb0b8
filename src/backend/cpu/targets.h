// The instruction sets the kernels are compiled for: SSE4, AVX2 and AVX-512 on x86, Highway's own choice elsewhere. Include it before
// hwy/foreach_target.h.
#pragma once
#if defined(__x86_64__) && !defined(__AVX2__)
#define HWY_BASELINE_TARGETS HWY_SSE4
#endif
