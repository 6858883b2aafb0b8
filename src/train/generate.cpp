#include "train/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"

namespace tessera {
namespace {

// Ids by falling logit, equal ones by rising id; only the first top_k.
std::vector<int32_t> candidates(const std::vector<float>& logits, int64_t top_k) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t keep = top_k > 0 ? std::min(size_t(top_k), ids.size()) : ids.size();
  std::partial_sort(ids.begin(), ids.begin() + std::ptrdiff_t(keep), ids.end(), [&](int32_t a, int32_t b) {
    return logits[size_t(a)] != logits[size_t(b)] ? logits[size_t(a)] > logits[size_t(b)] : a < b;
  });
  ids.resize(keep);
  return ids;
}

}  // namespace

int32_t sample(const std::vector<float>& logits, const SamplingOptions& o, uint64_t index) {
  if (o.temperature <= 0) return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const std::vector<int32_t> ids = candidates(logits, o.top_k);
  std::vector<double> p;
  double sum = 0;
  for (const int32_t id : ids) {
    p.push_back(std::exp((double(logits[size_t(id)]) - logits[size_t(ids[0])]) / o.temperature));
    sum += p.back();
  }
  double kept = 0;
  size_t n = 0;
  while (n < p.size() && (n == 0 || kept < o.top_p * sum)) kept += p[n++];
  double draw = Rng(o.seed, Purpose::sample).uniform(index) * kept;
  for (size_t i = 0; i < n; ++i)
    if ((draw -= p[i]) < 0) return ids[i];
  return ids[n - 1];
}

std::vector<int32_t> generate(Pass& pass, const std::vector<int32_t>& prompt, int64_t max_new, const std::vector<int64_t>& stop,
                              const SamplingOptions& o, const std::function<bool(int32_t)>& on_id) {
  if (prompt.empty()) fail("--prompt", "has no token", "a text, or a tokenizer that adds a first token", "give some text");
  pass.begin_generation(int64_t(prompt.size()) + max_new);
  std::vector<int32_t> out;
  std::vector<float> logits = pass.extend(prompt);
  while (int64_t(out.size()) < max_new) {
    const int32_t id = sample(logits, o, out.size());
    out.push_back(id);
    if (!on_id(id) || std::find(stop.begin(), stop.end(), id) != stop.end()) break;
    if (int64_t(out.size()) < max_new) logits = pass.extend({id});
  }
  return out;
}

}  // namespace tessera
