// Normal numbers of core/normal.h: its loops, compiled for every instruction set.
#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"
#include "core/normal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/random.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int counters = 64;      // in one block
constexpr int64_t grain = 16384;  // elements in a piece of work

// out[i] for i in [0, count): the normals from `index` on.
template <class T>
void fill(T* out, uint64_t key, uint64_t index, int64_t count, float scale) {
  HWY_ALIGN float block[4 * counters];
  for (int64_t i = 0; i < count;) {
    const auto skip = int64_t((index + uint64_t(i)) % 4), n = std::min<int64_t>(count - i, 4 * counters - skip);
    normal_block<counters>(block, key, (index + uint64_t(i)) / 4);
    for_vectors(0, n, [&](auto d, int64_t k) { store(hn::Mul(load(d, block + skip + k), hn::Set(d, scale)), d, out + i + k); });
    i += n;
  }
}

void random_normal(int threads, Tensor out, uint64_t key, uint64_t begin, float scale) {
  dispatch_float(out.dtype, [&]<class T>() {
    parallel_chunks(threads, out.size(), grain,
                    [&](int64_t from, int64_t to) { fill(out.as<T>() + from, key, begin + uint64_t(from), to - from, scale); });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(random_normal);
}  // namespace

void CpuBackend::random_normal(Tensor out, uint64_t key, uint64_t begin, float scale) {
  HWY_DYNAMIC_DISPATCH(random_normal)(threads_, out, key, begin, scale);
}

}  // namespace tessera
#endif
