#include "bench/limits.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <new>
#include <vector>

#ifdef __x86_64__
#include <emmintrin.h>
#endif

#include "core/buffer.h"

namespace tessera {
namespace {
using dnnl::memory;

constexpr int repeats = 25;
constexpr double repeat_seconds = 0.01;

// The most calls of f per second: repeats of about repeat_seconds each, after one call that warms up.
template <class F>
double best_calls_per_second(F&& f) {
  const auto seconds_of = [&](int64_t calls) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  seconds_of(1);
  const int64_t calls = std::max<int64_t>(1, int64_t(repeat_seconds / std::max(seconds_of(1), 1e-7)));
  double best = 0;
  for (int r = 0; r < repeats; ++r) best = std::max(best, double(calls) / seconds_of(calls));
  return best;
}

// oneDNN takes as many threads as OpenMP gives the caller.
class OmpThreads {
 public:
  explicit OmpThreads(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~OmpThreads() { omp_set_num_threads(before_); }
  OmpThreads(const OmpThreads&) = delete;
  OmpThreads& operator=(const OmpThreads&) = delete;

 private:
  int before_;
};

struct ProductShape {
  int64_t m, n, k;
};

memory ones(const memory::desc& desc, const dnnl::engine& engine, Dtype dtype) {
  memory out(desc, engine);
  const size_t elements = desc.get_size() / size_of(dtype);
  if (dtype == Dtype::bf16) std::fill_n(static_cast<Bf16*>(out.get_data_handle()), elements, Bf16(1));
  if (dtype == Dtype::f32) std::fill_n(static_cast<float*>(out.get_data_handle()), elements, 1.0f);
  return out;
}

double product_rate(Dtype dtype, ProductShape s) {
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto type = dtype == Dtype::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc a({s.m, s.k}, type, memory::format_tag::ab), b({s.k, s.n}, type, memory::format_tag::any),
      c({s.m, s.n}, type, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(a, b, c), engine);
  const dnnl::matmul product(chosen);
  const memory ma = ones(a, engine, dtype), mb = ones(chosen.weights_desc(), engine, dtype), mc = ones(c, engine, dtype);
  const double calls = best_calls_per_second([&] {
    product.execute(stream, {{DNNL_ARG_SRC, ma}, {DNNL_ARG_WEIGHTS, mb}, {DNNL_ARG_DST, mc}});
    stream.wait();
  });
  return calls * 2 * double(s.m) * double(s.n) * double(s.k);
}

// Compiled for the widest vectors too, and chosen when the program starts: narrow loads do not reach a cache's rate.
#ifdef __x86_64__
[[gnu::target_clones("default", "avx2", "avx512f")]]
#endif
uint64_t
read_words(const uint64_t* words, size_t n) {
  uint64_t all = 0;
  for (size_t i = 0; i < n; ++i) all ^= words[i];
  return all;
}

#ifdef __x86_64__
[[gnu::target_clones("default", "avx2", "avx512f")]]
#endif
void update_words(uint64_t* words, size_t n) {
  for (size_t i = 0; i < n; ++i) words[i] += 1;
}

// Past the caches: without reading first what is to be overwritten, where the processor can. REQUIRES: bytes a multiple of 64.
void copy_past_caches(std::byte* to, const std::byte* from, size_t bytes) {
#ifdef __x86_64__
  for (size_t i = 0; i < bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
}

// Calls per second of f(thread's part), each thread going over its own part `passes` times per call.
template <class F>
double passes_per_second(size_t working_set, int threads, F&& f) {
  constexpr size_t least_work = size_t(16) << 20;  // bytes between two meetings of the threads
  const int64_t passes = std::max<int64_t>(1, int64_t(least_work / working_set));
  const double calls = best_calls_per_second([&] {
#pragma omp parallel num_threads(threads)
    for (int64_t p = 0; p < passes; ++p) f(omp_get_thread_num());
  });
  return calls * double(passes);
}

// What is read counts as used, and is read again the next time.
void keep(uint64_t value) { asm volatile("" ::"r"(value) : "memory"); }

// Bytes that begin with a cache line, touched.
Buffer lines(size_t bytes) {
  void* data = std::aligned_alloc(64, bytes);
  if (!data) throw std::bad_alloc();
  std::memset(data, 1, bytes);
  return Buffer(data, bytes, [](void* d, size_t) { std::free(d); });
}

}  // namespace

double gemm_peak(Dtype dtype, int threads) {
  const OmpThreads scope(threads);
  double best = 0;
  for (const ProductShape s : {ProductShape{512, 2048, 2048}, {1024, 1024, 1024}, {1024, 2048, 1024}, {2048, 2048, 2048}})
    best = std::max(best, product_rate(dtype, s));
  return best;
}

double read_rate(size_t working_set, int threads) {
  const size_t part = working_set / size_t(threads) / sizeof(uint64_t);
  const std::vector<uint64_t> words(part * size_t(threads), 1);
  const double passes =
      passes_per_second(working_set, threads, [&](int thread) { keep(read_words(words.data() + size_t(thread) * part, part)); });
  return passes * double(words.size() * sizeof(uint64_t));
}

double copy_rate(size_t working_set, int threads) {
  const size_t part = working_set / 2 / size_t(threads) / 64 * 64, all = part * size_t(threads);
  const Buffer from = lines(all), to = lines(all);
  const auto passes = [&](auto copy) {
    return passes_per_second(working_set, threads, [&](int thread) {
      copy(to.data() + size_t(thread) * part, from.data() + size_t(thread) * part, part);
      keep(0);
    });
  };
  return std::max(passes(std::memcpy), passes(copy_past_caches)) * double(2 * all);
}

double update_rate(size_t working_set, int threads) {
  const size_t part = working_set / size_t(threads) / sizeof(uint64_t);
  std::vector<uint64_t> words(part * size_t(threads), 1);
  const double passes = passes_per_second(working_set, threads, [&](int thread) {
    update_words(words.data() + size_t(thread) * part, part);
    keep(0);
  });
  return passes * double(2 * words.size() * sizeof(uint64_t));
}

namespace {
template <class Key, class F>
double remembered(std::map<Key, double>& known, Key key, F&& read) {
  const auto [place, is_new] = known.emplace(key, 0);
  if (is_new) place->second = read(key);
  return place->second;
}

// What is smaller than a first-level cache, or larger than any, is no different from these.
size_t bounded(size_t working_set) { return std::clamp(working_set, size_t(32) << 10, size_t(512) << 20) / 1024 * 1024; }
}  // namespace

double MachineLimits::gemm(Dtype dtype) {
  return remembered(gemm_, dtype, [&](Dtype d) { return gemm_peak(d, threads_); });
}
double MachineLimits::read(size_t working_set) {
  return remembered(read_, bounded(working_set), [&](size_t bytes) { return read_rate(bytes, threads_); });
}
double MachineLimits::copy(size_t working_set) {
  return remembered(copy_, bounded(working_set), [&](size_t bytes) { return copy_rate(bytes, threads_); });
}
double MachineLimits::update(size_t working_set) {
  return remembered(update_, bounded(working_set), [&](size_t bytes) { return update_rate(bytes, threads_); });
}

}  // namespace tessera
