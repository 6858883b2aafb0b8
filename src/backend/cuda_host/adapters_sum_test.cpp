// The sum of narrow products, by its kernel on the host, against the definition in double. The numbers are small multiples of powers of two
// and so are alpha, beta and the factors of dropout: sums in f32 are exact, and c is their rounding, to the bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/cuda/adapters.h"
#include "backend/device_scratch.h"
#include "core/rng.h"

namespace tessera {
namespace {

using cuda_host::Device;

struct Row {
  int64_t m, k, rank;
  std::vector<float> p;  // of each adapter's dropout
  int64_t batch = 1;     // rows of m that have a key of their own
  float alpha = 1, beta = 0;
  bool in_place = false;  // add is c
  double tolerance = 0;   // relative
  bool infinite = false;  // the first number of the first t
};

// Memory of the device, filled from the host and read back.
class Memory {
 public:
  Memory(Device& device, size_t bytes) : device_(device), bytes_(bytes), data_(cuda_host::take_memory(device, bytes)) {}
  Memory(const Memory&) = delete;
  ~Memory() { cuda_host::give_memory(data_, bytes_); }
  void write(const void* from) { cuda_host::copy(device_, Lane::compute, data_, from, bytes_); }
  void read(void* to) { cuda_host::copy(device_, Lane::compute, to, data_, bytes_); }
  void* data() const { return data_; }

 private:
  Device& device_;
  size_t bytes_;
  void* data_;
};

// Multiples of a quarter up to 2.
template <class T>
std::vector<T> numbers(int64_t count, uint64_t stream) {
  const Rng rng(7, Purpose::init, "adapters", stream);
  std::vector<T> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = T(float(int(rng.bits(i) % 17) - 8) / 4);
  return out;
}

bool kept(const Row& row, float p, uint64_t key, const std::vector<int64_t>& row_keys, int64_t i, int64_t j) {
  const int64_t rows = row.m / row.batch, at = i % rows * row.k + j;
  const auto of_row = uint64_t(row_keys[size_t(i / rows)]);
  const Philox4 words = philox({uint32_t(at / 4), uint32_t(uint64_t(at / 4) >> 32), uint32_t(of_row), uint32_t(of_row >> 32)}, key);
  return double(words[size_t(at % 4)]) >= std::ceil(double(p) * 0x1p32);
}

template <class T, class C>
class Case {
 public:
  Case(const Row& row, uint64_t seed)
      : row_(row), device_(cuda_host::open_device(0, seed)), c_(*device_, sizeof(C) * size_t(after() + 64)) {
    for (size_t i = 0; i < row.p.size(); ++i) {
      t_.push_back(numbers<T>(row.m * row.rank, 2 * i));
      a_.push_back(numbers<T>(row.rank * row.k, 2 * i + 1));
    }
    if (row.infinite) t_[0][0] = T(INFINITY);
    for (int64_t b = 0; b < row.batch; ++b) row_keys_.push_back(b * 0x1'0000'0003 + 5);
  }

  void check() {
    const std::vector<C> before = numbers<C>(after() + 64, 100), add = row_.in_place ? before : numbers<C>(after(), 101);
    const std::vector<C> got = run(before, add);
    for (int64_t i = 0; i < after(); ++i) {
      const double wanted = expected(i / row_.k, i % row_.k) + double(row_.beta) * double(float(add[size_t(i)]));
      const float value = float(got[size_t(i)]), nearest = float(C(float(wanted)));
      const bool right = std::isfinite(wanted) ? std::abs(value - nearest) <= row_.tolerance * std::abs(wanted) : !std::isfinite(value);
      ASSERT_TRUE(right) << value << " for " << wanted << " in row " << i / row_.k << ", column " << i % row_.k;
    }
    for (size_t i = size_t(after()); i < got.size(); ++i) ASSERT_EQ(float(got[i]), float(before[i])) << "written after c";
  }

 private:
  int64_t after() const { return row_.m * row_.k; }
  static uint64_t key_of(size_t adapter) { return 0x1234'5678'9abc'def0 + adapter; }

  double expected(int64_t i, int64_t j) const {
    double sum = 0;
    for (size_t n = 0; n < t_.size(); ++n) {
      if (row_.p[n] > 0 && !kept(row_, row_.p[n], key_of(n), row_keys_, i, j)) continue;
      double one = 0;
      for (int64_t r = 0; r < row_.rank; ++r)
        one += double(float(t_[n][size_t(i * row_.rank + r)])) * double(float(a_[n][size_t(r * row_.k + j)]));
      sum += one / (1 - double(row_.p[n]));
    }
    return double(row_.alpha) * sum;
  }

  // What stands behind it is no number, in any type.
  template <class X>
  void* given(const std::vector<X>& x) {
    std::vector<uint8_t> bytes(x.size() * sizeof(X) + 8192, 0xff);
    if (!x.empty()) std::memcpy(bytes.data(), x.data(), x.size() * sizeof(X));
    memory_.push_back(std::make_unique<Memory>(*device_, bytes.size()));
    memory_.back()->write(bytes.data());
    return memory_.back()->data();
  }

  std::vector<C> run(const std::vector<C>& before, const std::vector<C>& add) {
    const Dtype dtype = std::is_same_v<T, F16> ? Dtype::f16 : Dtype::bf16;
    const Tensor row_keys{given(row_keys_), Dtype::i64, {row_.batch}, nullptr};
    std::vector<AdapterProduct> all(row_.p.size());
    for (size_t n = 0; n < all.size(); ++n) {
      all[n].t = {given(t_[n]), dtype, {row_.m, row_.rank}, nullptr};
      all[n].a = {given(a_[n]), dtype, {row_.rank, row_.k}, nullptr};
      all[n].scale = 1000;  // is not for this product
      all[n].drop.p = row_.p[n];
      if (row_.p[n] > 0) all[n].drop.row_keys = row_keys, all[n].drop.key = key_of(n);
    }
    EXPECT_TRUE(joins_adapters(all));
    c_.write(before.data());
    const void* const added = row_.beta == 0 ? nullptr : row_.in_place ? c_.data() : given(add);
    const Tensor c{c_.data(), sizeof(C) == 4 ? Dtype::f32 : dtype, {row_.m, row_.k}, nullptr};
    cuda_host::adapters_sum(*device_, c, all, row_.alpha, row_.beta, added);
    std::vector<C> got(before.size());
    c_.read(got.data());
    return got;
  }

  Row row_;
  cuda_host::OpenDevice device_;
  Memory c_;
  std::vector<std::unique_ptr<Memory>> memory_;
  std::vector<std::vector<T>> t_, a_;
  std::vector<int64_t> row_keys_;
};

template <class T, class C>
void check(const Row& row) {
  for (const uint64_t seed : {1, 2}) {
    SCOPED_TRACE(testing::Message() << "m " << row.m << " k " << row.k << " rank " << row.rank << ", " << row.p.size() << " adapters, seed "
                                    << seed);
    Case<T, C>(row, seed).check();
  }
}

TEST(AdaptersSum, IsOneProductOfOneAdapter) {
  check<Bf16, Bf16>({.m = 64, .k = 128, .rank = 16, .p = {0}});
  check<F16, F16>({.m = 1, .k = 8, .rank = 8, .p = {0}, .alpha = 2});
  check<Bf16, float>({.m = 63, .k = 120, .rank = 24, .p = {0}, .alpha = 0.5f, .beta = 1});
}

// Ranks of 8 stand beside each other, so that every other adapter begins within an mma, and the last 8 of an odd number are filled up.
TEST(AdaptersSum, AddsUpToFourAdapters) {
  check<F16, F16>({.m = 130, .k = 264, .rank = 8, .p = {0, 0, 0}, .alpha = 0.5f, .beta = 1});
  check<Bf16, Bf16>({.m = 63, .k = 128, .rank = 8, .p = {0, 0}, .beta = 0.5f, .in_place = true});
  check<F16, float>({.m = 64, .k = 264, .rank = 24, .p = {0, 0, 0}, .alpha = -1, .beta = 1, .in_place = true});
  check<Bf16, Bf16>({.m = 130, .k = 120, .rank = 64, .p = {0, 0, 0, 0}, .alpha = 0.25f, .beta = 1, .in_place = true});
}

TEST(AdaptersSum, DropsWhatTheMaskOfEachAdapterDrops) {
  check<Bf16, Bf16>({.m = 64, .k = 128, .rank = 16, .p = {0.5f}});
  check<F16, F16>({.m = 130, .k = 264, .rank = 8, .p = {0.5f, 0.75f}, .batch = 2, .alpha = 0.5f});
  check<F16, float>({.m = 64, .k = 120, .rank = 24, .p = {0.5f, 0.5f, 0.75f}, .batch = 4, .beta = 1});
  check<Bf16, float>({.m = 1, .k = 8, .rank = 64, .p = {0.5f}, .alpha = 2, .beta = 1, .in_place = true});
  check<Bf16, Bf16>({.m = 63, .k = 128, .rank = 64, .p = {0.5f, 0.75f, 0.5f, 0.75f}, .batch = 3, .beta = 1, .in_place = true});
}

TEST(AdaptersSum, AdaptersWithoutDropoutStandBesideOthers) {
  check<F16, F16>({.m = 65, .k = 136, .rank = 16, .p = {0, 0.5f, 0}, .batch = 5, .beta = 1});
}

TEST(AdaptersSum, FactorsNeedNotBePowersOfTwo) {
  check<Bf16, float>({.m = 40, .k = 64, .rank = 16, .p = {0.1f, 0.05f}, .batch = 2, .tolerance = 1e-5});
}

// What a mask drops is 0, not a factor of what might be no number.
TEST(AdaptersSum, WhatIsDroppedLeavesNoTrace) { check<Bf16, Bf16>({.m = 3, .k = 128, .rank = 16, .p = {0.5f, 0.75f}, .infinite = true}); }

TEST(AdaptersSum, NothingToDoForNoRows) { check<Bf16, Bf16>({.m = 0, .k = 128, .rank = 8, .p = {0}}); }

}  // namespace
}  // namespace tessera
