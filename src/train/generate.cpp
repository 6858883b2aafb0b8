#include "train/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/rng.h"

namespace tessera {
namespace {

// The first of the largest. Compared in lanes: this is the only look at all logits that a greedy token takes.
int32_t largest(const std::vector<float>& x) {
  constexpr size_t lanes = 16;
  float best[lanes];
  std::fill_n(best, lanes, -std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + lanes <= x.size(); i += lanes)
    for (size_t lane = 0; lane < lanes; ++lane) best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
  for (; i < x.size(); ++i) best[0] = std::max(best[0], x[i]);
  const auto found = std::find(x.begin(), x.end(), *std::max_element(best, best + lanes));
  return found == x.end() ? 0 : int32_t(found - x.begin());
}

struct Later {
  const std::vector<float>& logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[size_t(a)] != logits[size_t(b)] ? logits[size_t(a)] < logits[size_t(b)] : a > b;
  }
};

// Ids by falling logit, equal ones by rising id, found as far as they are asked for: most draws need few of a large vocabulary.
class Ranking {
 public:
  Ranking(const std::vector<float>& logits, double temperature) : logits_(logits), temperature_(temperature) {
    const float top = logits[size_t(largest(logits))];
    // A draw has 24 bits: no draw reaches what lies further below, all of it together.
    const double reach = temperature * (24 * std::log(2.0) + std::log(double(logits.size())) + 1);
    for (size_t id = 0; id < logits.size(); ++id)
      if (logits[id] >= top - reach) heap_.push_back(int32_t(id));
    top_ = top;
    std::make_heap(heap_.begin(), heap_.end(), Later{logits_});
  }
  size_t size() const { return ranked_.size() + heap_.size(); }
  int32_t id(size_t rank) {
    while (ranked_.size() <= rank) {
      std::pop_heap(heap_.begin(), heap_.end(), Later{logits_});
      ranked_.push_back(heap_.back());
      heap_.pop_back();
    }
    return ranked_[rank];
  }
  double weight(int32_t id) const { return std::exp((double(logits_[size_t(id)]) - top_) / temperature_); }
  double whole() const {
    double sum = 0;
    for (const auto* ids : {&ranked_, &heap_})
      for (const int32_t id : *ids) sum += weight(id);
    return sum;
  }

 private:
  const std::vector<float>& logits_;
  double temperature_, top_ = 0;
  std::vector<int32_t> ranked_, heap_;
};

}  // namespace

int32_t sample(const std::vector<float>& logits, const SamplingOptions& o, uint64_t index) {
  if (o.temperature <= 0) return largest(logits);
  Ranking ranking(logits, o.temperature);
  const auto weight = [&](size_t rank) { return ranking.weight(ranking.id(rank)); };
  size_t n = ranking.size();
  double kept = 0;
  if (o.top_k > 0 && size_t(o.top_k) < n) {
    n = size_t(o.top_k);
    for (size_t rank = 0; rank < n; ++rank) kept += weight(rank);
  } else {
    kept = ranking.whole();
  }
  if (o.top_p < 1) {
    const double enough = o.top_p * kept;
    kept = 0;
    size_t rank = 0;
    while (rank < n && (rank == 0 || kept < enough)) kept += weight(rank++);
    n = rank;
  }
  double draw = Rng(o.seed, Purpose::sample).uniform(index) * kept;
  for (size_t rank = 0; rank + 1 < n; ++rank)
    if ((draw -= weight(rank)) < 0) return ranking.id(rank);
  return ranking.id(n - 1);
}

double weight_bytes(const Model& m) {
  double bytes = 0;
  for (const UnitLayout& unit : m.units) bytes += double(unit.frozen_bytes) + double(unit.trainable) * double(size_of(m.options.compute));
  if (m.root.head) bytes -= double(m.root.embed.value.size()) * double(size_of(m.options.compute));
  return bytes;
}

std::vector<int32_t> generate(Pass& pass, const std::vector<int32_t>& prompt, int64_t max_new, const std::vector<int64_t>& stop,
                              const SamplingOptions& o, const std::function<bool(int32_t)>& on_id) {
  if (prompt.empty()) fail("--prompt", "has no token", "a text, or a tokenizer that adds a first token", "give some text");
  pass.begin_generation(int64_t(prompt.size()) + max_new);
  std::vector<int32_t> out;
  const std::vector<float>* logits = &pass.extend(prompt);
  while (int64_t(out.size()) < max_new) {
    const int32_t id = sample(*logits, o, out.size());
    out.push_back(id);
    if (!on_id(id) || std::find(stop.begin(), stop.end(), id) != stop.end()) break;
    if (int64_t(out.size()) < max_new) logits = &pass.extend({id});
  }
  return out;
}

}  // namespace tessera
