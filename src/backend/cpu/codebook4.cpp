// 4-bit codes. Source of the rules: bitsandbytes' CUDA kernels (kQuantizeBlockwise, kDequantizeBlockwise): reciprocal and product in
// float, numbers below 2^-126 count as zero, NaN never is the largest and takes code 0.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/codebook4.cpp"
#include "hwy/foreach_target.h"
// foreach_target.h comes before the headers it compiles again
#include "backend/cpu/codes4-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace {
constexpr int64_t most_in_block = 4096;
constexpr int64_t nested_block = 256;

// 2N consecutive elements as float: those of even and those of odd index.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void load_pairs(D d, const float* x, V& even, V& odd) {
  hn::LoadInterleaved2(d, x, even, odd);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void load_pairs(D d, const Bf16* x, V& even, V& odd) {
  const hn::RebindToUnsigned<D> du;
  const auto both = hn::LoadU(du, reinterpret_cast<const uint32_t*>(x));
  even = hn::BitCast(d, hn::ShiftLeft<16>(both));
  odd = hn::BitCast(d, hn::And(both, hn::Set(du, 0xffff0000u)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void load_pairs(D d, const F16* x, V& even, V& odd) {
  const hn::RebindToUnsigned<D> du;
  const auto both = hn::LoadU(du, reinterpret_cast<const uint32_t*>(x));
  even = from_f16(d, both);
  odd = from_f16(d, hn::ShiftRight<16>(both));
}

// The 15 thresholds in the order a binary search asks for them.
struct Search {
  float first, second[2];
  HWY_ALIGN float third[16] = {}, fourth[16] = {};  // 4 and 8 values, at the front
  explicit Search(const float* table) {
    const auto threshold = [&](int i) { return (table[i] + table[i + 1]) / 2; };
    first = threshold(7);
    for (int i = 0; i < 2; ++i) second[i] = threshold(8 * i + 3);
    for (int i = 0; i < 4; ++i) third[i] = threshold(4 * i + 1);
    for (int i = 0; i < 8; ++i) fourth[i] = threshold(2 * i);
  }
};

// table[index] for up to 8 values.
template <class D, class V = hn::Vec<D>, class VI = hn::Vec<hn::RebindToSigned<D>>>
HWY_INLINE V look_up8(D d, const float* table, VI index) {
  if constexpr (hn::MaxLanes(D()) >= 8) return hn::TableLookupLanes(hn::Load(d, table), hn::IndicesFromVec(d, index));
  const hn::RebindToSigned<D> di;
  const auto four = hn::Set(di, 4), low = hn::And(index, hn::Set(di, 3));
  const auto at = hn::IndicesFromVec(d, low);
  const auto upper = hn::RebindMask(d, hn::Eq(hn::And(index, four), four));
  return hn::IfThenElse(upper, hn::TableLookupLanes(hn::LoadU(d, table + 4), at), hn::TableLookupLanes(hn::Load(d, table), at));
}

// The number of thresholds below y; 0 for NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> code_of(D d, V y, const Search& search) {
  const hn::RebindToSigned<D> di;
  const auto one = hn::Set(di, 1);
  const auto append = [&](auto code, auto above) {
    code = hn::Add(code, code);
    return hn::IfThenElse(hn::RebindMask(di, above), hn::Add(code, one), code);
  };
  const auto upper = hn::Gt(y, hn::Set(d, search.first));
  auto code = hn::IfThenElseZero(hn::RebindMask(di, upper), one);
  code = append(code, hn::Gt(y, hn::IfThenElse(upper, hn::Set(d, search.second[1]), hn::Set(d, search.second[0]))));
  code = append(code, hn::Gt(y, look_up8(d, search.third, code)));
  return append(code, hn::Gt(y, look_up8(d, search.fourth, code)));
}

template <class T>
HWY_INLINE float largest_in(const T* x, int64_t block) {
  const hn::ScalableTag<float> d;
  hn::Vec<decltype(d)> even, odd;
  auto largest = hn::Set(d, -FLT_MAX);
  for (int64_t i = 0; i < block; i += 2 * int64_t(hn::Lanes(d))) {
    load_pairs(d, x + i, even, odd);
    for (const auto v : {hn::Abs(flush(d, even)), hn::Abs(flush(d, odd))}) largest = hn::IfThenElse(hn::Gt(v, largest), v, largest);
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

template <class T>
HWY_INLINE void encode_block(uint8_t* codes, const T* x, float absmax, const Search& search, int64_t block) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  hn::Vec<decltype(d)> even, odd;
  const float reciprocal = 1 / absmax;
  const auto inverse = flush(d, hn::Set(d, reciprocal));
  for (int64_t i = 0; i < block; i += 2 * int64_t(hn::Lanes(d))) {
    load_pairs(d, x + i, even, odd);
    const auto high = code_of(d, hn::Mul(flush(d, even), inverse), search);
    const auto low = code_of(d, hn::Mul(flush(d, odd), inverse), search);
    hn::StoreU(hn::DemoteTo(d8, hn::Or(hn::ShiftLeft<4>(high), low)), d8, codes + i / 2);
  }
}

// Blocks [begin, end) of x (n). A short last block is encoded as if zeros followed.
template <class T>
void encode_range(uint8_t* codes, float* absmax, const T* x, int64_t n, const Search& search, int64_t block, int64_t begin, int64_t end) {
  const int64_t whole = std::min(end, n / block);
  for (int64_t b = begin; b < whole; ++b) absmax[b] = largest_in(x + b * block, block);
  for (int64_t b = begin; b < whole; ++b) encode_block(codes + b * block / 2, x + b * block, absmax[b], search, block);
  if (whole == end) return;
  const int64_t at = whole * block, count = n - at;
  T padded[most_in_block] = {};
  uint8_t bytes[most_in_block / 2];
  std::memcpy(static_cast<void*>(padded), x + at, size_t(count) * sizeof(T));
  absmax[whole] = largest_in(padded, block);
  encode_block(bytes, padded, absmax[whole], search, block);
  std::memcpy(codes + at / 2, bytes, size_t(count + 1) / 2);
}

void encode(uint8_t* codes, float* absmax, Tensor x, const float* table, int64_t block, int64_t begin, int64_t end) {
  const Search search(table);
  const int64_t n = x.size();
  if (x.dtype == Dtype::bf16) return encode_range(codes, absmax, x.as<const Bf16>(), n, search, block, begin, end);
  if (x.dtype == Dtype::f16) return encode_range(codes, absmax, x.as<const F16>(), n, search, block, begin, end);
  encode_range(codes, absmax, x.as<const float>(), n, search, block, begin, end);
}

template <class T>
void decode_range(T* out, const uint8_t* codes, const float* absmax, const float* table, int64_t n, int64_t block, int64_t begin,
                  int64_t end) {
  HWY_ALIGN T products[16];
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * block, count = std::min(n - first, block), whole = count / 32 * 32;
    multiply(products, table, absmax[b]);
    look_up(out + first, codes + first / 2, products, whole);
    for (int64_t i = first + whole; i < first + count; ++i) out[i] = products[codes[i / 2] >> (i % 2 ? 0 : 4) & 15];
  }
}

void decode(Tensor out, const uint8_t* codes, const float* absmax, const float* table, int64_t block, int64_t begin, int64_t end) {
  dispatch_float(out.dtype, [&]<class T>() { decode_range(out.as<T>(), codes, absmax, table, out.size(), block, begin, end); });
}

// --- 8-bit codes of the scales ---------------------------------------------------------------------------------------------------

// The nearest entry of an ascending map, by the middles between entries; halfway between two the even index, as the search of
// bitsandbytes' CUDA kernel ends. NaN: 0.
struct Search8 {
  HWY_ALIGN float middle[256];
  explicit Search8(const float* map) {
    for (int i = 0; i < 255; ++i) middle[i] = (map[i] + map[i + 1]) * 0.5f;
    middle[255] = NAN;  // neither below nor equal to anything
  }
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> code8_of(D d, V y, const Search8& search) {
  const hn::RebindToSigned<D> di;
  auto code = hn::Zero(di);
  for (int step = 128; step; step /= 2) {
    const auto below = hn::Lt(hn::GatherIndex(d, search.middle, hn::Add(code, hn::Set(di, step - 1))), y);
    code = hn::Add(code, hn::IfThenElseZero(hn::RebindMask(di, below), hn::Set(di, step)));
  }
  const auto halfway = hn::RebindMask(di, hn::Eq(hn::GatherIndex(d, search.middle, code), y));
  return hn::Add(code, hn::And(hn::IfThenElseZero(halfway, hn::Set(di, 1)), code));
}

// Returns the scale of one block. Like a short block of 4-bit codes, a short one counts as if zeros followed.
float nested_encode_block(uint8_t* q, const float* absmax, int64_t count, float offset, const Search8& search) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  constexpr int64_t lanes = hn::MaxLanes(d);
  HWY_ALIGN float x[nested_block] = {};
  uint8_t codes[nested_block];
  for_vectors(0, count,
              [&](auto some, int64_t i) { store(flush(some, hn::Sub(load(some, absmax + i), hn::Set(some, offset))), some, x + i); });
  auto largest = hn::Set(d, count < nested_block ? 0.0f : -FLT_MAX);
  for (int64_t i = 0; i < nested_block; i += lanes) {
    const auto size = hn::Abs(hn::Load(d, x + i));
    largest = hn::IfThenElse(hn::Gt(size, largest), size, largest);
  }
  const float scale = hn::GetLane(hn::MaxOfLanes(d, largest)), reciprocal = 1 / scale;
  const auto inverse = flush(d, hn::Set(d, reciprocal));
  for (int64_t i = 0; i < nested_block; i += lanes)
    hn::StoreU(hn::DemoteTo(d8, code8_of(d, hn::Mul(hn::Load(d, x + i), inverse), search)), d8, codes + i);
  std::memcpy(q, codes, size_t(count));
  return scale;
}

void nested_encode_range(uint8_t* q, float* scale, const float* absmax, int64_t n, float offset, const float* map, int64_t begin,
                         int64_t end) {
  const Search8 search(map);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * nested_block;
    scale[b] = nested_encode_block(q + first, absmax + first, std::min(nested_block, n - first), offset, search);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {

HWY_EXPORT(encode);
HWY_EXPORT(decode);
HWY_EXPORT(nested_encode_range);

// About this many elements are one piece of parallel work.
constexpr int64_t grain4 = 1 << 16;

void CpuBackend::codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block) {
  parallel_chunks(threads_, absmax.size(), grain4 / block, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(encode)(codes.as<uint8_t>(), absmax.as<float>(), x, table, block, begin, end);
  });
}

void CpuBackend::codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block) {
  parallel_chunks(threads_, absmax.size(), grain4 / block, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(decode)(out, codes.as<const uint8_t>(), absmax.as<const float>(), table, block, begin, end);
  });
}

void CpuBackend::nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map) {
  const auto* codes = q.as<const uint8_t>();
  const auto* scales = scale.as<const float>();
  const float shift = *offset.as<const float>();
  parallel_chunks(threads_, absmax.size(), grain4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) absmax.as<float>()[i] = map[codes[i]] * scales[i / 256] + shift;
  });
}

void CpuBackend::nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map) {
  parallel_chunks(threads_, scale.size(), 64, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(nested_encode_range)
    (q.as<uint8_t>(), scale.as<float>(), absmax.as<const float>(), absmax.size(), offset, map, begin, end);
  });
}

}  // namespace tessera
#endif
