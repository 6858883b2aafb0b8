// A half-open range of bytes, elements or blocks.
#pragma once
#include <algorithm>
#include <cstddef>

namespace tessera {

struct Range {
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// What two ranges share; empty (begin == end) when they do not meet.
inline Range intersect(Range a, Range b) {
  const size_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

}  // namespace tessera
