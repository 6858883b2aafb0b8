// Products with few rows of c: what one new token of a sequence, or the next few, ask for. Rows of b are read once, as they are stored, one
// after the other, and meet all rows of a while they are in registers: the limit is the speed of memory. Each term adds to an element a sum
// of its own, kept in a few vectors along k.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"
#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/gemm_few_rows.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/codes4-inl.h"
#include "backend/cpu/dot-inl.h"
#include "backend/cpu/simd.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t most_rows = 4;
constexpr int64_t grain = 1 << 16;     // numbers of b in a piece of work,
constexpr int64_t most_piece = 256;    // and rows of b at most
constexpr int64_t block = 64;          // weights that share a scale, in the codes that are looked up in registers
constexpr int64_t nested_block = 256;  // scales that share a scale of their own
constexpr int64_t ahead = 2048;        // bytes between the codes asked of memory and those in use

template <class T>
constexpr int64_t numbers = int64_t(hn::MaxLanes(floats)) * (sizeof(T) == 4 ? 1 : 2);  // in a vector

// The partial sums of an element: enough that none waits for the last step of itself.
template <int m>
constexpr int chains = m == 1 ? 4 : 2;
template <int m>
using Sums = FloatVec[m][chains<m>];

// A term whose rows of a are copied: `stride` numbers apart, zeros up to it, and in the order in which the numbers of b come.
template <class T>
struct Operand {
  Factor b;
  const T* a = nullptr;
  int64_t stride = 0, k = 0;
};

// Sums of a piece: c (m, rows of b from `begin`), before alpha and what is added.
struct Piece {
  int64_t begin, end;
  float* totals;  // rows of c most_piece apart
};

template <int m>
HWY_INLINE void set_zero(Sums<m>& sum) {
#pragma GCC unroll 4
  for (int r = 0; r < m; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < chains<m>; ++c) sum[r][c] = hn::Zero(floats);
}

template <int m>
HWY_INLINE void add_to(const Piece& piece, int64_t n, const Sums<m>& sum) {
#pragma GCC unroll 4
  for (int r = 0; r < m; ++r) {
    FloatVec all = sum[r][0];
#pragma GCC unroll 4
    for (int c = 1; c < chains<m>; ++c) all = hn::Add(all, sum[r][c]);
    piece.totals[r * most_piece + n - piece.begin] += hn::GetLane(hn::SumOfLanes(floats, all));
  }
}

template <class T>
HWY_INLINE FloatVec load_numbers(const T* x) {
  return hn::LoadU(floats, reinterpret_cast<const float*>(x));
}

// The first `count` numbers, the rest zero.
template <class T>
HWY_INLINE FloatVec load_rest(const T* x, int64_t count) {
#if HWY_TARGET == HWY_AVX3
  const auto first = (uint64_t(1) << (count * int64_t(sizeof(T)))) - 1;
  return hn::BitCast(floats, hn::Vec512<uint8_t>{_mm512_maskz_loadu_epi8(first, x)});
#else
  HWY_ALIGN T rest[numbers<T>] = {};
  std::memcpy(static_cast<void*>(rest), x, size_t(count) * sizeof(T));
  return load_numbers(rest);
#endif
}

template <class T, Dot dot>
HWY_INLINE FloatVec add_numbers(FloatVec sum, FloatVec x, FloatVec y) {
  if constexpr (sizeof(T) == 4)
    return hn::MulAdd(x, y, sum);
  else
    return add_dot<dot>(sum, x, y);
}

// sums += rows of a times `count` numbers of b.
template <class T, Dot dot, int m>
HWY_INLINE void add_values(Sums<m>& sum, const T* a, int64_t stride, const T* b, int64_t count) {
  constexpr int64_t step = numbers<T>, wide = chains<m> * step;
  const auto add = [&](int chain, int64_t i, FloatVec y) {
#pragma GCC unroll 4
    for (int r = 0; r < m; ++r) sum[r][chain] = add_numbers<T, dot>(sum[r][chain], load_numbers(a + r * stride + i), y);
  };
  int64_t i = 0;
  for (; i + wide <= count; i += wide)
#pragma GCC unroll 4
    for (int c = 0; c < chains<m>; ++c) add(c, i + c * step, load_numbers(b + i + c * step));
  for (; i + step <= count; i += step) add(0, i, load_numbers(b + i));
  if (i < count) add(0, i, load_rest(b + i, count - i));
}

template <class T, Dot dot, int m>
HWY_NOINLINE void add_dense(const Piece& piece, const Operand<T>& x) {
  for (int64_t n = piece.begin; n < piece.end; ++n) {
    Sums<m> sum;
    set_zero<m>(sum);
    add_values<T, dot, m>(sum, x.a, x.stride, x.b.dense.template as<const T>() + n * x.k, x.k);
    add_to<m>(piece, n, sum);
  }
}

// Codes of any shape, by way of their values.
template <class T, Dot dot, int m>
HWY_NOINLINE void add_decoded(const Piece& piece, const Operand<T>& x) {
  constexpr int64_t most = 256;
  HWY_ALIGN T values[most];
  for (int64_t n = piece.begin; n < piece.end; ++n) {
    Sums<m> sum;
    set_zero<m>(sum);
    for (int64_t i = 0; i < x.k; i += most) {
      const int64_t count = std::min(most, x.k - i);
      decode_values(values, x.b.codes, n * x.k + i, count);
      add_values<T, dot, m>(sum, x.a + i, x.stride, values, count);
    }
    add_to<m>(piece, n, sum);
  }
}

#if HWY_TARGET == HWY_AVX3
// Are codes looked up in registers? A vector of high nibbles then comes before the vector of low ones.
bool looks_up(const Codes4& w) { return w.block == block && w.cols % block == 0; }

// Rounded to bf16, the 16 of them twice: a lookup reads five bits of an index, and the fifth belongs to another code. Both ways of
// rounding give zero for numbers below 2^-126.
template <Dot dot>
HWY_INLINE __m512i rounded_twice(FloatVec products, float scale) {
  if constexpr (dot == Dot::native) {
    __m512i out;
    asm("vcvtne2ps2bf16 %1, %1, %0" : "=v"(out) : "v"(products.raw));
    return out;
  }
  if (scale < 0x1p-100f) products = hn::CopySign(flush(floats, products), products);
  return _mm512_broadcast_i64x4(to_bf16_bits(floats, products).raw);
}

template <Dot dot>
HWY_INLINE void look_up_block(FloatVec (&out)[2], const Bf16*, FloatVec table, float scale, const uint8_t* codes) {
  const __m512i products = rounded_twice<dot>(hn::Mul(table, hn::Set(floats, scale)), scale);
  const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  out[0].raw = _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), products));
  out[1].raw = _mm512_castsi512_ps(_mm512_permutexvar_epi16(both, products));
}

template <Dot dot>
HWY_INLINE void look_up_block(FloatVec (&out)[4], const float*, FloatVec table, float scale, const uint8_t* codes) {
  FloatVec products = hn::Mul(table, hn::Set(floats, scale));
  if (scale < 0x1p-100f) products = hn::CopySign(flush(floats, products), products);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * i)));
    out[2 * i].raw = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), products.raw);
    out[2 * i + 1].raw = _mm512_permutexvar_ps(both, products.raw);
  }
}

// sums += rows of a times the blocks [first, first + count); scale_of(i): the scale of block i.
template <class T, Dot dot, int m, class F>
HWY_INLINE void add_blocks(Sums<m>& sum, const T* a, int64_t stride, const Codes4& w, int64_t first, int64_t count, F&& scale_of) {
  constexpr int vectors = int(block / numbers<T>);
  const FloatVec table = hn::LoadU(floats, w.table);
  const uint8_t* codes = w.codes.as<const uint8_t>() + first * block / 2;
  const auto add_block = [&](int chain, int64_t i) {
    FloatVec y[vectors];
    look_up_block<dot>(y, a, table, scale_of(first + i), codes + i * block / 2);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 4
      for (int r = 0; r < m; ++r) {
        FloatVec& s = sum[r][(chain + v) % chains<m>];
        s = add_numbers<T, dot>(s, load_numbers(a + r * stride + i * block + v * numbers<T>), y[v]);
      }
  };
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    hwy::Prefetch(codes + i * block / 2 + ahead);
    add_block(0, i);
    add_block(vectors, i + 1);
  }
  if (i < count) add_block(0, i);
}

template <class T, Dot dot, int m>
HWY_NOINLINE void add_codes(const Piece& piece, const Operand<T>& x) {
  const Codes4& w = x.b.codes;
  const int64_t blocks = x.k / block;
  const float* scales = w.absmax.as<const float>();
  for (int64_t n = piece.begin; n < piece.end; ++n) {
    Sums<m> sum;
    set_zero<m>(sum);
    add_blocks<T, dot, m>(sum, x.a, x.stride, w, n * blocks, blocks, [=](int64_t i) { return scales[i]; });
    add_to<m>(piece, n, sum);
  }
}

// The 256 values that a code of a nested scale can have are decoded once for as many codes.
template <class T, Dot dot, int m>
HWY_NOINLINE void add_nested_codes(const Piece& piece, const Operand<T>& x) {
  const Codes4& w = x.b.codes;
  const int64_t blocks = x.k / block;
  const uint8_t* codes = w.absmax.as<const uint8_t>();
  HWY_ALIGN float scales[256];
  int64_t made = -1;
  for (int64_t n = piece.begin; n < piece.end; ++n) {
    Sums<m> sum;
    set_zero<m>(sum);
    for (int64_t first = n * blocks, end = first + blocks, stop; first < end; first = stop) {
      const int64_t nested = first / nested_block;
      if (nested != made) {
        const float scale = w.nested_absmax.as<const float>()[nested], offset = *w.nested_offset.as<const float>();
        for (int i = 0; i < 256; ++i) scales[i] = w.map[i] * scale + offset;
        made = nested;
      }
      stop = std::min(end, (nested + 1) * nested_block);
      const T* a = x.a + (first - n * blocks) * block;
      add_blocks<T, dot, m>(sum, a, x.stride, w, first, stop - first, [&](int64_t i) { return scales[codes[i]]; });
    }
    add_to<m>(piece, n, sum);
  }
}

template <class T, Dot dot, int m>
void add_term(const Piece& piece, const Operand<T>& x) {
  if (!x.b.is_codes()) return add_dense<T, dot, m>(piece, x);
  if (!looks_up(x.b.codes)) return add_decoded<T, dot, m>(piece, x);
  if (x.b.codes.absmax.dtype == Dtype::u8) return add_nested_codes<T, dot, m>(piece, x);
  add_codes<T, dot, m>(piece, x);
}
#else
bool looks_up(const Codes4&) { return false; }

template <class T, Dot dot, int m>
void add_term(const Piece& piece, const Operand<T>& x) {
  if (x.b.is_codes()) return add_decoded<T, dot, m>(piece, x);
  add_dense<T, dot, m>(piece, x);
}
#endif

// A row of a as the numbers of b come: one after the other, or those of even and those of odd places a vector each.
template <class T>
void copy_row(T* to, const T* from, int64_t k, const Factor& b) {
  if (!b.is_codes() || !looks_up(b.codes)) return void(std::copy_n(from, k, to));
  constexpr int64_t n = numbers<T>;
  for (int64_t i = 0; i < k; i += 2 * n)
    for (int64_t j = 0; j < n; ++j) {
      to[i + j] = from[i + 2 * j];
      to[i + n + j] = from[i + 2 * j + 1];
    }
}

template <class T>
struct Operands {
  int count = 0;
  int64_t depth = 0;  // of all terms
  Operand<T> at[Product::most_terms];
  hwy::AlignedFreeUniquePtr<T[]> copies;

  explicit Operands(const Product& p) {
    const int64_t m = p.c.rows();
    const auto padded = [](int64_t k) { return (k + block - 1) / block * block; };
    int64_t size = 0;
    for (int i = 0; i < p.terms; ++i) size += m * padded(p.term[i].a.cols());
    copies = hwy::AllocateAligned<T>(size_t(size));
    T* to = copies.get();
    for (int i = 0; i < p.terms; ++i) {
      const Term& t = p.term[i];
      const int64_t k = t.a.cols();
      at[count++] = {t.b, to, padded(k), k};
      depth += k;
      for (int64_t r = 0; r < m; ++r, to += padded(k)) {
        copy_row(to, t.a.as<const T>() + r * k, k, t.b);
        std::fill(to + k, to + padded(k), T(0));
      }
    }
  }
};

template <class T>
void finish(const Product& p, const Piece& piece) {
  dispatch_float(p.c.dtype, [&]<class C>() {
    for (int64_t r = 0; r < p.c.rows(); ++r) {
      const int64_t row = r * p.c.cols();
      C* c = p.c.as<C>() + row;
      for_vectors(piece.begin, piece.end, [&](auto d, int64_t n) {
        auto v = hn::Mul(load(d, piece.totals + r * most_piece + n - piece.begin), hn::Set(d, p.alpha));
        if (p.accumulate) v = hn::Add(v, load(d, c + n));
        if (!p.bias.empty()) v = hn::Add(v, load(d, p.bias.as<const T>() + n));
        if (!p.addend.empty()) v = hn::Add(v, load(d, p.addend.as<const T>() + row + n));
        store(v, d, c + n);
      });
    }
  });
}

template <class T, Dot dot, int m>
void run_piece(const Product& p, const Operands<T>& terms, int64_t begin, int64_t end) {
  HWY_ALIGN float totals[m * most_piece] = {};
  const Piece piece{begin, end, totals};
  for (int i = 0; i < terms.count; ++i) add_term<T, dot, m>(piece, terms.at[i]);
  finish<T>(p, piece);
}

template <class T, Dot dot>
void run(int threads, const Product& p) {
  const Operands<T> terms(p);
  const int64_t n = p.c.cols(), piece = std::clamp<int64_t>(grain / std::max<int64_t>(terms.depth, 1), 1, most_piece);
  parallel_chunks(worth_threads(threads, n * terms.depth), n, piece, [&](int64_t begin, int64_t end) {
    switch (p.c.rows()) {
      case 1:
        return run_piece<T, dot, 1>(p, terms, begin, end);
      case 2:
        return run_piece<T, dot, 2>(p, terms, begin, end);
      case 3:
        return run_piece<T, dot, 3>(p, terms, begin, end);
      case 4:
        return run_piece<T, dot, 4>(p, terms, begin, end);
    }
  });
}

bool few_rows(int threads, const Product& p) {
  if (p.c.rows() > most_rows || p.transpose_a || !p.transpose_b || p.terms == 0) return false;
  if (p.c.size() == 0) return true;
  if (p.term[0].a.dtype == Dtype::f32) {
    run<float, Dot::widened>(threads, p);
  } else if (has_bf16_dot()) {
    if constexpr (may_have_bf16_dot) run<Bf16, Dot::native>(threads, p);
  } else {
    run<Bf16, Dot::widened>(threads, p);
  }
  return true;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {
HWY_EXPORT(few_rows);
}  // namespace

bool CpuBackend::gemm_few_rows(const Product& p) { return HWY_DYNAMIC_DISPATCH(few_rows)(threads_, p); }

}  // namespace tessera
#endif
